"""Locks between processes: the one file that knows of `fcntl`.

A system without `fcntl` (Windows) has no locks here. A `Lock` then holds nothing, and `have_locks`
says so: the caller must not conclude from a lock that nobody else works.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Lock:
    """An open file or directory that this process may lock; closing it gives the lock back.

    The system closes it when the process ends, in whatever way.

    Args:
        path: The file, or a directory.
        create: Make the file where there is none. Needs `path` to be a file.

    Raises:
        OSError: if it cannot be opened.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._fcntl = _load()
        # Some network file systems grant an exclusive lock only to who may write.
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        # Without locks a directory stays closed: Windows can neither open nor rename an open one.
        self._handle = os.open(path, flags, 0o666) if self._fcntl or create else None

    def exclusive(self, *, wait: bool = True) -> None:
        """Lock it for this process alone.

        Raises:
            OSError: if another process holds it, and `wait` is off.
        """
        self._flock("LOCK_EX", wait=wait)

    def shared(self) -> None:
        """Lock it together with others that share it; an exclusive lock becomes a shared one."""
        self._flock("LOCK_SH", wait=True)

    def _flock(self, kind: str, *, wait: bool) -> None:
        if self._fcntl is not None:
            flags = getattr(self._fcntl, kind) | (0 if wait else self._fcntl.LOCK_NB)
            self._fcntl.flock(self._handle, flags)

    def close(self) -> None:
        """Give the lock back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def have_locks() -> bool:
    """Whether this system can lock a file or a directory."""
    return _load() is not None


def _load() -> Any | None:  # noqa: ANN401  # a module
    try:
        import fcntl
    except ImportError:
        return None
    return fcntl
