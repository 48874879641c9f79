"""Make hostile files of every kind, give them to the command line, and table what became of each.

    python scripts/hostile.py                 # all, a table by kind; exit code 1 if any ends badly
    python scripts/hostile.py --list          # the names alone
    python scripts/hostile.py --only graphs   # one kind

Each file is made in a folder of its own from a fixed seed and played in a worker process that calls
`main`, as a shell would. A case ends badly if it ends in an internal error, needs more than 20 s or
2 GB, runs code of the file, or prints a control character or more than one line on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import hostile_checkpoints
import hostile_clips
import hostile_graphs
import hostile_texts
from worker_process import LostError, Worker

KINDS = {
    "texts": hostile_texts.cases,
    "checkpoints": hostile_checkpoints.cases,
    "graphs": hostile_graphs.cases,
    "clips": hostile_clips.cases,
}
MOST_SECONDS, MOST_MB = 20, 2000
CANARY = "code-ran"


@dataclass(frozen=True)
class Outcome:
    """How one case ended: exit code, seconds, peak memory, and what is wrong with it."""

    kind: str
    name: str
    code: int | None
    seconds: float
    peak_mb: float
    faults: tuple[str, ...]
    said: str


def play(kind: str, name: str, folder: Path) -> Outcome:
    """Make one case in an empty folder and give it to the command line."""
    from exporter.cli import main

    make = dict(KINDS[kind]())[name]
    os.chdir(folder)
    argv = make(Path())
    _forget_peak()
    out, err = io.StringIO(), io.StringIO()
    started = time.monotonic()
    with _of_libraries() as said, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    seconds, peak, said = time.monotonic() - started, _peak_mb(), err.getvalue() + "".join(said)
    faults = tuple(_faults(out.getvalue(), said, code, seconds, peak, folder))
    return Outcome(kind, name, code, seconds, peak, faults, said.strip()[:300])


@contextlib.contextmanager
def _of_libraries() -> Iterator[list[str]]:
    """Yield a list that afterwards holds what libraries in C wrote to stderr."""
    found: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            found.append(file.read().decode(errors="replace"))


def _faults(
    out: str, err: str, code: int, seconds: float, peak: float, folder: Path
) -> Iterator[str]:
    if "internal:" in err:
        yield "internal error"
    if code not in (0, 2, 3, 4, 5):
        yield f"exit code {code}"
    if code and len(err.splitlines()) > 1:
        yield "more than one line"
    if any(not (c.isprintable() or c in "\n") for c in out + err):
        yield "control character"
    if seconds > MOST_SECONDS:
        yield f"{seconds:.0f} s"
    if peak > MOST_MB:
        yield f"{peak:.0f} MB"
    if (folder / CANARY).exists():
        yield "code ran"


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from now on


def _peak_mb() -> float:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) / 1000 if found else 0.0
    return 0.0


def _work(tasks: Any, answers: Any) -> None:  # noqa: ANN401  # connections
    for kind, name in iter(tasks.recv, None):
        with tempfile.TemporaryDirectory() as folder:
            answers.send(play(kind, name, Path(folder)))
            os.chdir("/")


def play_in(worker: Worker, kind: str, name: str) -> Outcome:
    """Play one case; after three times the limit the process is killed."""
    try:
        return worker.ask((kind, name))
    except LostError as fault:
        return Outcome(kind, name, None, 3 * MOST_SECONDS, 0, (str(fault),), "")


def table(outcomes: list[Outcome]) -> str:
    """Count by kind, and name what ended badly."""
    lines = [f"{'kind':12} {'files':>5} {'bad':>4} {'longest s':>9} {'most MB':>8}  exit codes"]
    for kind in KINDS:
        of = [outcome for outcome in outcomes if outcome.kind == kind]
        if of:
            codes = Counter(outcome.code for outcome in of)
            listed = ", ".join(f"{code}: {count}" for code, count in codes.most_common())
            lines.append(
                f"{kind:12} {len(of):5} {sum(bool(o.faults) for o in of):4} "
                f"{max(o.seconds for o in of):9.1f} {max(o.peak_mb for o in of):8.0f}  {listed}"
            )
    bad = [outcome for outcome in outcomes if outcome.faults]
    lines += [f"{o.kind}/{o.name}: {', '.join(o.faults)}: {o.said!r}" for o in bad]
    return "\n".join(lines)


def main() -> int:
    """Play the cases and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--every", type=int, default=1, help="take every n-th case")
    parser.add_argument("--json", type=Path, help="write all outcomes here")
    given = parser.parse_args()
    kinds = [given.only] if given.only else list(KINDS)
    chosen = [(kind, name) for kind in kinds for name, _ in KINDS[kind]()][:: given.every]
    if given.list:
        print("\n".join(f"{kind}/{name}" for kind, name in chosen))
        return 0
    worker = Worker(_work, 3 * MOST_SECONDS)
    outcomes = [play_in(worker, kind, name) for kind, name in chosen]
    worker.close()
    print(table(outcomes))
    if given.json:
        rows = [vars(outcome) for outcome in outcomes]
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
