"""The faults of `broken_machine.py`: how each breaks the machine, and how a command may end."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CANNOT_MOUNT = subprocess.CalledProcessError
DONE, INTERRUPTED, KILLED = 0, 130, -signal.SIGKILL
REFUSED = frozenset({2, 3, 4})  # an output, an input, or a stage that cannot go on
EITHER = REFUSED | {DONE}

Started = Sequence["subprocess.Popen[bytes]"]
TINY = (
    *("--attn", "fastformer", "--res", "32", "--frames", "2", "--dim", "32", "--depth", "1"),
    *("--heads", "2", "--dim-head", "16", "--bench-seconds", "0", "--quiet"),
)
TSFORMER = (sys.executable, "-m", "tsformer")


class Place:
    """The folders of one fault: outputs, TMPDIR and HOME, each of which may be a small disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parent, self.temporary, self.home = root / "out", root / "tmp", root / "home"
        self.output = self.parent / "made"
        self._mounted: list[Path] = []
        for folder in (self.parent, self.temporary, self.home):
            folder.mkdir()

    def small_disk(self, folder: Path, size: str) -> None:
        """Mount a file system of `size` at a folder."""
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            check=True,
            capture_output=True,
        )
        self._mounted.append(folder)

    def make_read_only(self, folder: Path) -> None:
        """Take the permission to write away, also from root: mount the disk again."""
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True, capture_output=True)

    def unmount(self) -> None:
        """Take the small disks away."""
        for folder in self._mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)

    def outputs(self) -> list[Path]:
        """What stands where the outputs go; hidden files of a lock are no output."""
        return sorted(self.parent.iterdir()) if self.parent.exists() else []

    def temporary_files(self) -> list[Path]:
        """What is left in TMPDIR, apart from the folder that PyTorch makes as it is imported."""
        left = sorted(self.temporary.iterdir()) if self.temporary.exists() else []
        return [path for path in left if not path.name.startswith("torchinductor_")]


def _nothing(_place: Place, _started: Started = ()) -> None:
    """Break nothing."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way in which a machine breaks.

    `before` breaks it before the commands start. `meanwhile` starts the timer that breaks it while
    they run. `codes` are the exit codes that are right. `check` replaces the check of what is left.
    """

    name: str
    commands: Callable[[Place], Sequence[Sequence[str]]]
    codes: frozenset[int]
    before: Callable[[Place], None] = _nothing
    meanwhile: Callable[[Place, Started], threading.Timer | None] = _nothing
    check: Callable[[Place], Sequence[str]] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    stdout: str = ""
    wrapper: Sequence[str] = ()
    in_child: Callable[[], None] | None = None
    tidies_later: bool = False


def export(place: Place, *more: str, engine: str = "none") -> list[str]:
    """The command of a small export."""
    return [*TSFORMER, "export", *TINY, "--engine", engine, "-o", str(place.output), *more]


def sweep(place: Place) -> list[str]:
    """The command of a small sweep of two cells."""
    flags = [word for word in TINY if word not in ("--attn", "fastformer")]
    grid = ("--attn", "fastformer,regular")
    return [*TSFORMER, "sweep", *grid, *flags, "--engine", "none", "-o", str(place.output)]


def faults(kills: int, choose: random.Random, seconds: float) -> Iterator[Fault]:
    """All faults; `kills` random moments for SIGKILL, and half as many for SIGINT.

    `seconds` is the time of one export with an engine.
    """
    # An export without an engine takes about half of that time.
    yield from full_disks(midway=0.2 * seconds)
    yield from removed(midway=0.2 * seconds)
    yield from closed_outputs()
    yield from poor_machines()
    yield from strange_names()
    yield from at_once()
    for number in range(kills):
        yield _signalled(number, signal.SIGKILL, choose.uniform(0.2, seconds))
    for number in range(kills // 2):
        yield _signalled(number, signal.SIGINT, choose.uniform(0.2, seconds))


def full_disks(midway: float) -> Iterator[Fault]:
    """Too little space under the output, in TMPDIR, and for the cells of a sweep."""
    for size in ("16k", "64k", "200k"):
        yield Fault(
            name=f"disk: {size} for the output",
            commands=lambda place: [export(place)],
            codes=REFUSED,
            before=lambda place, size=size: place.small_disk(place.parent, size),
        )
    int8 = ("--precision", "int8")
    for size, more in (("16k", ()), ("64k", int8), ("200k", int8)):
        yield Fault(
            name=f"disk: {size} for TMPDIR {' '.join(more)}".strip(),
            commands=lambda place, more=more: [export(place, *more, engine="auto")],
            codes=EITHER,
            before=lambda place, size=size: place.small_disk(place.temporary, size),
        )
    yield Fault(
        name="disk: 400k for the cells of a sweep",
        commands=lambda place: [sweep(place)],
        codes=REFUSED,
        before=lambda place: place.small_disk(place.parent, "400k"),
    )
    yield Fault(
        name="disk: read-only from the start",
        commands=lambda place: [export(place)],
        codes=REFUSED,
        before=_read_only,
    )
    yield Fault(
        name="disk: read-only midway",
        commands=lambda place: [export(place)],
        codes=EITHER,
        before=lambda place: place.small_disk(place.parent, "50m"),
        meanwhile=lambda place, _: _later(midway, lambda: place.make_read_only(place.parent)),
        check=lambda _place: [],  # a disk that cannot be written keeps what it has
    )


def _read_only(place: Place) -> None:
    place.small_disk(place.parent, "50m")
    place.make_read_only(place.parent)


def removed(midway: float) -> Iterator[Fault]:
    """Folders that vanish while a command runs."""

    def staging(place: Place) -> None:
        for path in place.parent.iterdir():
            shutil.rmtree(path, ignore_errors=True)

    for name, break_it in (
        ("the staging folder", staging),
        ("the parent of the output", lambda place: shutil.rmtree(place.parent)),
        ("TMPDIR", lambda place: shutil.rmtree(place.temporary)),
    ):
        yield Fault(
            name=f"removed midway: {name}",
            commands=lambda place: [export(place)],
            codes=EITHER,
            meanwhile=lambda place, _, break_it=break_it: _later(midway, lambda: break_it(place)),
        )


def closed_outputs() -> Iterator[Fault]:
    """A standard output that takes nothing."""
    full = {"stdout": "/dev/full"}
    yield Fault(
        name="stdout: /dev/full, export --json",
        commands=lambda place: [export(place, "--json")],
        codes=frozenset({DONE}),
        **full,  # type: ignore[arg-type]
    )
    for command in ("--help", "doctor"):
        yield Fault(
            name=f"stdout: /dev/full, {command}",
            commands=lambda _place, command=command: [[*TSFORMER, command]],
            codes=EITHER,
            **full,  # type: ignore[arg-type]
        )
    yield Fault(
        name="stdout: closed, export --json",
        commands=lambda place: [export(place, "--json")],
        codes=frozenset({DONE}),
        wrapper=("sh", "-c", 'exec "$@" >&-', "sh"),
    )
    for reader in ("true", "head -1"):
        yield Fault(
            name=f"stdout: a pipe to {reader}",
            commands=lambda _place, reader=reader: [
                ["bash", "-c", f'"$@" | {reader} >/dev/null', "bash", *TSFORMER, "--help"]
            ],
            codes=frozenset({DONE}),
        )


def poor_machines() -> Iterator[Fault]:
    """Little memory, one core, a bare environment, a narrow or dumb terminal."""
    for megabytes in (300, 1000, 2000):
        yield Fault(
            name=f"memory: {megabytes} MB of address space",
            commands=lambda place: [export(place)],
            codes=EITHER,
            in_child=lambda megabytes=megabytes: resource.setrlimit(
                resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20)
            ),
        )
    yield Fault(
        name="one core",
        commands=lambda place: [export(place)],
        codes=frozenset({DONE}),
        in_child=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name, given, without in (
        ("no HOME", {}, {"HOME"}),
        ("LANG=C without UTF-8 mode", plain, set()),
        ("TERM=dumb", {"TERM": "dumb"}, set()),
        ("40 columns", {"COLUMNS": "40"}, set()),
    ):
        yield Fault(
            name=f"environment: {name}",
            commands=lambda place: [[word for word in export(place) if word != "--quiet"]],
            codes=frozenset({DONE}),
            environment=given,
            without=frozenset(without),
        )


def strange_names() -> Iterator[Fault]:
    """Outputs whose names have spaces, foreign letters, and 200 characters."""
    for name in ("with two spaces", "größe 模型", "n" * 200, "n" * 300):
        yield Fault(
            name=f"name: {name[:20]} ({len(name)} characters)",
            commands=lambda place, name=name: [[*export(place)[:-1], str(place.parent / name)]],
            codes=frozenset({DONE}) if len(name) <= 200 else REFUSED,
        )


def at_once() -> Iterator[Fault]:
    """Two commands with one output."""
    yield Fault(
        name="at once: two exports",
        commands=lambda place: [export(place), export(place)],
        codes=EITHER,
    )
    yield Fault(
        name="at once: two sweeps",
        commands=lambda place: [sweep(place), sweep(place)],
        codes=EITHER,
    )


def _signalled(number: int, which: signal.Signals, seconds: float) -> Fault:
    code = KILLED if which == signal.SIGKILL else INTERRUPTED
    return Fault(
        name=f"{which.name} {number} after {seconds:.1f} s",
        commands=lambda place: [export(place, "--force", engine="auto")],
        codes=frozenset({DONE, code, -which}),
        meanwhile=lambda _place, started: _later(seconds, lambda: started[0].send_signal(which)),
        tidies_later=which == signal.SIGKILL,
    )


def _later(seconds: float, do: Callable[[], None]) -> threading.Timer:
    """Do something in `seconds`, beside the commands."""
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()
    return timer
