"""The output directory: whole or absent, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from exporter.errors import OutputError

MANIFEST = "manifest.json"


class StagedDirectory:
    """Fill `path` in a hidden directory beside `out`; `publish` renames it into place.

    Leaving the context without `publish` removes everything. What a killed run left behind is
    removed by the next one: a staging directory is locked for as long as its process lives.

    Raises:
        OutputError: if `out` exists and may not be replaced, or cannot be written.
    """

    path: Path

    def __init__(self, out: Path, *, force: bool = False) -> None:
        self.out = out.absolute()
        self._force = force
        self._published = False
        self._made_parents: list[Path] = []

    def __enter__(self) -> Self:
        parent = self.out.parent
        try:
            self._check_out()
            self._made_parents = [p for p in (parent, *parent.parents) if not p.exists()]
            parent.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            self.path, self._lock = self._make_hidden()
            self.path.chmod(0o777 & ~_umask())
        except OSError as error:
            self._remove_made_parents()
            raise OutputError(
                f"cannot write {self.out}: {error.strerror or error}",
                remedy="give another place with -o",
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._published:
            shutil.rmtree(self.path, ignore_errors=True)
            self._remove_made_parents()
        os.close(self._lock)

    def publish(self) -> None:
        """Put the directory into place; an older export there is replaced, never mixed with."""
        self._check_out()
        try:
            if self.out.exists():
                self._replace()
            else:
                self.path.rename(self.out)
        except OSError as error:
            raise OutputError(f"cannot put {self.out} into place: {error.strerror}") from error
        self._published = True

    def _replace(self) -> None:
        aside, lock = self._make_hidden()
        try:
            self.out.rename(aside / "old")
            try:
                self.path.rename(self.out)
            except BaseException:
                (aside / "old").rename(self.out)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            os.close(lock)

    def _make_hidden(self) -> tuple[Path, int]:
        """Make a directory beside `out`, locked; until it is, another run may take it for stale."""
        while True:
            path = Path(tempfile.mkdtemp(".partial", self._prefix, self.out.parent))
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(path, os.O_RDONLY)
                fcntl.flock(lock, fcntl.LOCK_EX)
                if path.exists():
                    return path, lock
                os.close(lock)

    @property
    def _prefix(self) -> str:
        return f".{self.out.name}."

    def _check_out(self) -> None:
        if not os.path.lexists(self.out):  # a link to nowhere is something too
            return
        if not self.out.is_dir():
            raise OutputError(f"{self.out} is a file", remedy="give another place with -o")
        if not self._force:
            raise OutputError(
                f"{self.out} exists", remedy="replace it with --force, or give another -o"
            )
        if any(self.out.iterdir()) and not (self.out / MANIFEST).exists():
            raise OutputError(
                f"{self.out} is not an export of tsformer and will not be replaced",
                remedy="give another place with -o",
            )

    def _remove_stale(self) -> None:
        for path in self.out.parent.glob(f"{glob.escape(self._prefix)}*.partial"):
            with contextlib.suppress(OSError):  # another process may be removing it too
                handle = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
                finally:
                    os.close(handle)

    def _remove_made_parents(self) -> None:
        for path in self._made_parents:
            with contextlib.suppress(OSError):  # not empty: others use it by now
                path.rmdir()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
