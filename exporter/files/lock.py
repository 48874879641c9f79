"""Locks between processes. Only this file imports `fcntl`.

On a system without `fcntl` (Windows) a `Lock` does not lock, and `have_locks` returns False. A
caller there must not conclude from a lock that no other process works.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Lock:
    """An open file or directory that this process may lock. Closing it releases the lock.

    The system closes it when the process ends, also when the process is killed.

    Args:
        path: The file, or a directory.
        create: Create the file if it is missing. `path` must not be a directory.

    Raises:
        OSError: if `path` cannot be opened.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._fcntl = _load()
        # Some network file systems give an exclusive lock only on a file opened for writing.
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        # Without locks, do not open a directory: Windows cannot open it, or rename it while open.
        self._handle = os.open(path, flags, 0o666) if self._fcntl or create else None

    def exclusive(self, *, wait: bool = True) -> None:
        """Take an exclusive lock.

        Raises:
            OSError: if another process holds a lock, and `wait` is False.
        """
        self._flock("LOCK_EX", wait=wait)

    def shared(self) -> None:
        """Take a shared lock; an exclusive lock of this process becomes a shared one."""
        self._flock("LOCK_SH", wait=True)

    def _flock(self, kind: str, *, wait: bool) -> None:
        if self._fcntl is not None:
            flags = getattr(self._fcntl, kind) | (0 if wait else self._fcntl.LOCK_NB)
            self._fcntl.flock(self._handle, flags)

    def close(self) -> None:
        """Release the lock."""
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
    """Tell whether this system can lock a file or a directory."""
    return _load() is not None


def _load() -> Any | None:  # noqa: ANN401  # a module
    try:
        import fcntl
    except ImportError:
        return None
    return fcntl
