"""Break the machine under an export or a sweep, and check what is left.

    python scripts/broken_machine.py              # all faults; exit code 1 if one ends badly
    python scripts/broken_machine.py --only disk  # the faults whose name contains a word
    python scripts/broken_machine.py --kills 5    # fewer random moments of SIGKILL and SIGINT

A fault ends well if its output is whole or absent, no temporary file and no process is left, and a
failure is one line on stderr that is not an internal error. Full disks are small file systems: to
mount them needs root; without it these faults are listed as not played. After SIGKILL, a second run
may tidy up what the first left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from broken_machine_faults import CANNOT_MOUNT, Fault, Place, export, faults

MOST_SECONDS = 180
MARK = "TSFORMER_BROKEN_MACHINE"  # in the environment of every process of a run


@dataclass
class Outcome:
    """How one fault ended, and what is wrong with it."""

    name: str
    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    said: str = ""
    played: bool = True
    late: bool = False  # the commands ended before the machine broke


def play(fault: Fault, place: Place) -> Outcome:
    """Start the commands of a fault at once, break the machine meanwhile, and look at the rest."""
    outcome, began = Outcome(fault.name), time.monotonic()
    fault.before(place)
    started = [start(command, fault, place) for command in fault.commands(place)]
    timer = fault.meanwhile(place, started)
    for process in started:
        try:
            _, said = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            outcome.wrong.append("hangs")
            _, said = process.communicate()
        outcome.codes.append(process.returncode)
        outcome.said = said.decode(errors="replace").strip()[-400:] or outcome.said
        outcome.wrong += wrong_words(said.decode(errors="replace"), process.returncode, fault)
    if timer and timer.is_alive():
        timer.cancel()
        outcome.late = True
    outcome.wrong += [f"a process is left: {name}" for name in processes_of(place)]
    if fault.tidies_later:
        start(fault.commands(place)[0], fault, place).communicate()
    outcome.wrong += fault.check(place) if fault.check else wrong_files(place)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def time_of_export() -> float:
    """Seconds of one export with an engine on this machine, with nothing broken."""
    with tempfile.TemporaryDirectory() as folder:
        place, began = Place(Path(folder)), time.monotonic()
        subprocess.run(export(place, engine="auto"), check=True, capture_output=True)
        return time.monotonic() - began


def start(command: Sequence[str], fault: Fault, place: Place) -> subprocess.Popen[bytes]:
    """Start a command of a fault in a session of its own."""
    out: int = subprocess.DEVNULL
    if fault.stdout:
        out = os.open(fault.stdout, os.O_WRONLY)
    process = subprocess.Popen(
        [*fault.wrapper, *command],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.PIPE,
        env=environment(fault, place),
        start_new_session=True,
        preexec_fn=fault.in_child,  # no threads are here yet
        cwd=place.home,
    )
    if out >= 0:
        os.close(out)
    return process


def environment(fault: Fault, place: Place) -> dict[str, str]:
    """The environment of a fault's commands: a TMPDIR and a HOME of their own."""
    base = os.environ | {"TMPDIR": str(place.temporary), "HOME": str(place.home)}
    base |= {MARK: str(place.root), "OMP_NUM_THREADS": "1"} | fault.environment
    return {name: value for name, value in base.items() if name not in fault.without}


def wrong_words(said: str, code: int, fault: Fault) -> Iterator[str]:
    """What is wrong with the end of a command (pure)."""
    if code not in fault.codes:
        yield f"exit code {code}, expected one of {sorted(fault.codes)}"
    if "internal:" in said or "Traceback" in said:
        yield "an internal error"
    lines = [line for line in said.splitlines() if line.strip()]
    if code > 0 and len(lines) > 1:
        yield f"{len(lines)} lines on stderr"


def wrong_files(place: Place) -> Iterator[str]:
    """What is left that should not be: a part of an output, a temporary file."""
    from exporter.errors import TsformerError
    from exporter.files.manifest import read_manifest

    for made in place.outputs():
        if (made / "manifest.json").exists():
            try:
                read_manifest(made)
            except TsformerError as error:
                yield f"a part of an output: {error}"
        elif not (made / "sweep.json").exists():
            yield f"not an output: {made.name}"
    yield from (f"a temporary file: {path.name}" for path in place.temporary_files())


def processes_of(place: Place, patience: float = 3.0) -> list[str]:
    """Find processes that carry the mark of a run, once they had time to end."""
    mark, until = f"{MARK}={place.root}".encode(), time.monotonic() + patience
    while True:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "comm").read_text().strip())
            except OSError:
                continue
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the chosen faults, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="the faults whose name contains this word")
    parser.add_argument("--kills", type=int, default=40, help="moments of SIGKILL; half of SIGINT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args(arguments)
    outcomes: list[Outcome] = []
    for fault in faults(chosen.kills, random.Random(chosen.seed), time_of_export()):
        if chosen.only not in fault.name:
            continue
        with tempfile.TemporaryDirectory(prefix="broken-") as folder:
            place = Place(Path(folder))
            try:
                outcome = play(fault, place)
            except CANNOT_MOUNT as error:
                outcome = Outcome(fault.name, said=str(error), played=False)
            finally:
                place.unmount()
        outcomes.append(outcome)
        end = "not played" if not outcome.played else "; ".join(outcome.wrong) or "good"
        end += ", ended before the fault" if outcome.late else ""
        print(f"{fault.name:<44} {outcome.codes!s:<12} {outcome.seconds:6.1f} s  {end}", flush=True)
    bad = [outcome for outcome in outcomes if outcome.wrong]
    missed = sum(not outcome.played for outcome in outcomes)
    print(f"{len(outcomes)} faults, {missed} not played, {len(bad)} bad")
    if chosen.output:
        chosen.output.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
