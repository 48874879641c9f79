"""Stage an output directory, so that it appears complete or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from exporter.errors import OutputError
from exporter.files.lock import Lock, have_locks

MANIFEST = "manifest.json"
ENTRY_MARK = "tsformer.json"  # differs from MANIFEST, so that an entry is not taken for an export
_RESERVE = 2**22  # bytes that are kept for the clean-up of a run that uses up the memory
# A manifest of ours begins with these. Web pages and add-ons of browsers have a manifest.json too.
_BEGIN, _BEGIN_BYTES = (b'"manifest_version"', b'"verdict"'), 200
_BESIDE = ("model.onnx", "report.json")  # tell an export whose manifest is damaged


class StagedDirectory:
    """Fill `path` in a hidden directory beside `out`; `publish` renames it into place.

    Leaving the context without `publish` removes everything. A process locks its staging directory
    while it lives, so the next run finds and removes the unlocked directory of a killed run. On a
    system without locks no run can tell a killed run from a live one, and the directory stays.

    Args:
        out: The directory to make.
        force: Replace an earlier export there, with all that its directory holds.
        reads: Files and directories that the run reads, which must not be replaced.

    Raises:
        OutputError: if `out` exists and must not be replaced, or cannot be written.
    """

    path: Path
    elsewhere: ClassVar[str] = "give another place with -o"

    def __init__(self, out: Path, *, force: bool = False, reads: Sequence[Path] = ()) -> None:
        self.out = out.absolute()
        self._force = force
        self._reads = reads
        self._published = False
        self._made_parents: list[Path] = []
        self._reserve = bytearray(_RESERVE)

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
        self._reserve.clear()
        if not self._published:
            shutil.rmtree(self.path, ignore_errors=True)
            self._remove_made_parents()
        self._lock.close()

    def publish(self) -> None:
        """Rename the directory into place; it replaces an older export as a whole."""
        self._check_out()
        try:
            if self.out.exists():
                self._replace()
            else:
                self.path.rename(self.out)
        except OSError as error:
            raise OutputError(f"cannot move the export to {self.out}: {error.strerror}") from error
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
            lock.close()

    def _make_hidden(self) -> tuple[Path, Lock]:
        """Make and lock a directory beside `out`; retry if another run removes it first."""
        while True:
            path = Path(tempfile.mkdtemp(".partial", self._prefix, self._place))
            with contextlib.suppress(FileNotFoundError):
                lock = Lock(path)
                lock.exclusive()
                if path.exists():
                    return path, lock
                lock.close()

    @property
    def _place(self) -> Path:
        """The parent of the hidden directories; a rename must stay on one file system."""
        return self.out.parent

    @property
    def _prefix(self) -> str:
        return f".{self.out.name}."

    def _check_out(self) -> None:
        if not os.path.lexists(self.out):  # lexists is true for a link without a target too
            return
        if not self.out.is_dir():
            raise OutputError(f"{self.out} is a file", remedy=self.elsewhere)
        if not self._force:
            raise OutputError(
                f"{self.out} exists", remedy="replace it with --force, or give another -o"
            )
        if any(self.out.iterdir()) and not _is_export(self.out):
            raise OutputError(
                f"{self.out} is not an export of tsformer and will not be replaced",
                remedy=self.elsewhere,
            )
        wanted = {path: str(path) for path in self._reads}
        with contextlib.suppress(OSError):  # it was removed
            wanted[Path.cwd()] = "the current directory"
        for path, name in wanted.items():
            if path.resolve().is_relative_to(self.out.resolve()):
                raise OutputError(
                    f"{name} lies in {self.out}, which --force would remove",
                    remedy=self.elsewhere,
                )

    def _remove_stale(self) -> None:
        if not have_locks():
            return
        for path in self._place.glob(f"{glob.escape(self._prefix)}*.partial"):
            # Another process may remove the same directory at the same time.
            with contextlib.suppress(OSError), Lock(path) as lock:
                lock.exclusive(wait=False)
                shutil.rmtree(path)

    def _remove_made_parents(self) -> None:
        for path in self._made_parents:
            with contextlib.suppress(OSError):  # not empty if another process uses it
                path.rmdir()


class StagedEntries(StagedDirectory):
    """Fill `path` with entries for `out`; `publish` adds them to the other entries of `out`.

    Args:
        out: The directory that receives the entries. It may exist.
        names: The names of the new entries. Each entry contains the file `ENTRY_MARK`, which shows
            that tsformer made it.
        family: The names that belong together. With `force`, `publish` removes every entry of the
            family that tsformer made, also if no new entry has its name.
        force: Replace the entries of an earlier call.

    Raises:
        OutputError: if an entry exists and must not be replaced, or cannot be written.
    """

    elsewhere = "give another repository"

    def __init__(
        self, out: Path, names: Sequence[str], *, family: Sequence[str], force: bool = False
    ) -> None:
        super().__init__(out, force=force)
        self._names, self._family = tuple(names), tuple(family)

    def publish(self) -> None:
        """Move all entries into place; if one fails, restore the older entries."""
        self._check_out()
        made = not self.out.exists()
        try:
            self.out.mkdir(exist_ok=True)
            self._exchange()
        except OSError as error:
            if made:
                shutil.rmtree(self.out, ignore_errors=True)
            raise OutputError(f"cannot move entries into {self.out}: {error.strerror}") from error
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
            lock.close()

    def _in_the_way(self) -> list[Path]:
        """List existing entries with the name of a new one, and outdated entries of the family."""
        entries = [self.out / name for name in self._family]
        return [
            entry
            for entry in entries
            if (entry.name in self._names and os.path.lexists(entry))
            or (entry / ENTRY_MARK).exists()
        ]

    @property
    def _place(self) -> Path:
        """Beside `out`, because a server may read `out`; inside `out` if beside is impossible."""
        parent = self.out.parent
        effective = os.access in os.supports_effective_ids  # not on Windows
        closed = not os.access(parent, os.W_OK, effective_ids=effective)
        is_mount = os.path.ismount(self.out)  # pathlib's fails on Windows before Python 3.12
        return self.out if self.out.is_dir() and (closed or is_mount) else parent

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


def _is_export(directory: Path) -> bool:
    """Whether tsformer made a directory; its manifest may be damaged since."""
    if not os.path.lexists(directory / MANIFEST):
        return False
    if all((directory / name).exists() for name in _BESIDE):
        return True
    with contextlib.suppress(OSError), (directory / MANIFEST).open("rb") as file:
        start = file.read(_BEGIN_BYTES)
        return all(word in start for word in _BEGIN)
    return False


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
