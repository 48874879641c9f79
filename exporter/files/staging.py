"""The output directory: whole or absent, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from exporter.errors import OutputError

MANIFEST = "manifest.json"
ENTRY_MARK = "tsformer.json"  # not the name of an export's own: an export is no entry


class StagedDirectory:
    """Fill `path` in a hidden directory beside `out`; `publish` renames it into place.

    Leaving the context without `publish` removes everything. What a killed run left behind is
    removed by the next one: a staging directory is locked for as long as its process lives.

    Raises:
        OutputError: if `out` exists and may not be replaced, or cannot be written.
    """

    path: Path
    elsewhere: ClassVar[str] = "give another place with -o"

    def __init__(self, out: Path, *, force: bool = False) -> None:
        self.out = out.absolute()
        self._force = force
        self._published = False
        self._made_parents: list[Path] = []

    def __enter__(self) -> Self:
        try:
            self._check_out()
            place = self._place
            self._made_parents = [p for p in (place, *place.parents) if not p.exists()]
            place.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            self.path, self._lock = self._make_hidden()
            self.path.chmod(0o777 & ~_umask())
        except OSError as error:
            self._remove_made_parents()
            raise OutputError(
                f"cannot write {self.out}: {error.strerror or error}", remedy=self.elsewhere
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
            path = Path(tempfile.mkdtemp(".partial", self._prefix, self._place))
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(path, os.O_RDONLY)
                fcntl.flock(lock, fcntl.LOCK_EX)
                if path.exists():
                    return path, lock
                os.close(lock)

    @property
    def _place(self) -> Path:
        """Where to make hidden directories: what is renamed must not cross a file system."""
        return self.out.parent

    @property
    def _prefix(self) -> str:
        return f".{self.out.name}."

    def _check_out(self) -> None:
        if not os.path.lexists(self.out):  # a link to nowhere is something too
            return
        if not self.out.is_dir():
            raise OutputError(f"{self.out} is a file", remedy=self.elsewhere)
        if not self._force:
            raise OutputError(
                f"{self.out} exists", remedy="replace it with --force, or give another -o"
            )
        if any(self.out.iterdir()) and not (self.out / MANIFEST).exists():
            raise OutputError(
                f"{self.out} is not an export of tsformer and will not be replaced",
                remedy=self.elsewhere,
            )

    def _remove_stale(self) -> None:
        for path in self._place.glob(f"{glob.escape(self._prefix)}*.partial"):
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


class StagedEntries(StagedDirectory):
    """Fill `path` with entries for `out`, which may exist and hold others; `publish` adds them.

    Args:
        out: The directory that they are for.
        names: The entries that will be made; each holds `ENTRY_MARK`, which makes it ours.
        family: Names of which one version is there as a whole: with `force`, ours among them make
            room, also for nothing.
        force: Replace those of an earlier call.

    Raises:
        OutputError: if an entry is in the way and may not be replaced, or cannot be written.
    """

    elsewhere = "give another repository"

    def __init__(
        self, out: Path, names: Sequence[str], *, family: Sequence[str], force: bool = False
    ) -> None:
        super().__init__(out, force=force)
        self._names, self._family = tuple(names), tuple(family)

    def publish(self) -> None:
        """Put the entries into place: all of them, or those of before come back."""
        self._check_out()
        made = not self.out.exists()
        try:
            self.out.mkdir(exist_ok=True)
            self._exchange()
        except OSError as error:
            if made:
                shutil.rmtree(self.out, ignore_errors=True)
            raise OutputError(f"cannot put into {self.out}: {error.strerror}") from error
        self._published = True
        shutil.rmtree(self.path, ignore_errors=True)  # empty by now

    def _exchange(self) -> None:
        aside, lock = self._make_hidden()
        try:
            try:
                for entry in self._in_the_way():
                    entry.rename(aside / entry.name)
                for name in self._names:
                    (self.path / name).rename(self.out / name)
            except BaseException:
                for name in self._names:
                    if not (self.path / name).exists():
                        (self.out / name).rename(self.path / name)
                for old in aside.iterdir():
                    old.rename(self.out / old.name)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            os.close(lock)

    def _in_the_way(self) -> list[Path]:
        """Entries that the new ones take the place of, and ours that would go stale beside them."""
        entries = [self.out / name for name in self._family]
        return [
            entry
            for entry in entries
            if (entry.name in self._names and os.path.lexists(entry))
            or (entry / ENTRY_MARK).exists()
        ]

    @property
    def _place(self) -> Path:
        """Beside `out`, since a server may look for entries in it; in it where that cannot be."""
        parent = self.out.parent
        closed = not os.access(parent, os.W_OK, effective_ids=True)
        return self.out if self.out.is_dir() and (closed or self.out.is_mount()) else parent

    def _check_out(self) -> None:
        if os.path.lexists(self.out) and not self.out.is_dir():
            raise OutputError(f"{self.out} is a file", remedy=self.elsewhere)
        if (self.out / MANIFEST).exists():
            raise OutputError(f"{self.out} is an export", remedy=self.elsewhere)
        for entry in self._in_the_way():
            if not self._force:
                raise OutputError(
                    f"{entry} exists", remedy="replace it with --force, or give another --name"
                )
            if not (entry / ENTRY_MARK).exists():
                raise OutputError(
                    f"{entry} was not made by tsformer and will not be replaced",
                    remedy="give another --name",
                )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
