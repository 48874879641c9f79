"""Build, prove and time three attention types in four precisions on a machine with an NVIDIA GPU.

    python scripts/gpu/bench_gpu.py --prepare       on any machine with torch: makes the exports
    python scripts/gpu/bench_gpu.py                 on the GPU: at most 8 minutes; needs no torch
    python scripts/gpu/bench_gpu.py --dry           on a CPU: tiny models, to try the script

Exports that are not prepared are made first where torch is installed, within the same time limit.
For each export the script runs `tsformer build`, `verify` and `bench`, and beside them, where torch
is installed, the published model in eager mode and torch.compile. Cheap cells come first; what the
time limit leaves out has a row with that reason. The results are one JSON file and one page.

Set PYTHONPATH to the project's directory where tsformer is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cells import DRY, FULL, MECHANISMS, PRECISIONS, Cell, Sizes, cells
from page import page
from steps import Budget, Step, rows_of, run_command, run_step

from exporter.machine import environment
from exporter.runners.cuda import look_for_gpu

ROOT = Path(__file__).resolve().parents[2]
NO_LIMIT = 1e6


def export_cell(cell: Cell, sizes: Sizes, directory: Path, budget: Budget) -> Step | None:
    """Make the export of a cell unless it is there."""
    if (directory / "manifest.json").is_file():
        return None
    if importlib.util.find_spec("torch") is None:
        reason = "it is not prepared, and torch is not installed: run with --prepare elsewhere"
        return Step(cell.name, "export", "failed", reason=reason)
    arguments = ["export", *cell.flags(sizes, directory), "--quiet"]
    return run_command(budget, cell.name, cell.resolution**2, arguments)


def measure(
    cell: Cell, sizes: Sizes, exports: Path, budget: Budget, seconds: float
) -> Iterator[Step]:
    """Run the steps of a cell; a step that fails ends those that need it."""
    directory, pixels = exports / cell.name, cell.resolution**2
    made = export_cell(cell, sizes, directory, budget)
    if made is not None:
        yield made
    if made is None or made.status == "done":
        batches = ",".join(map(str, sizes.batches))
        for command in (
            ("build", directory, "--force"),
            ("verify", directory, "--json"),
            ("bench", directory, "--batch", batches, "--seconds", seconds, "--json"),
        ):
            yield run_command(budget, cell.name, pixels, command)
    if cell.precision != "int8" and importlib.util.find_spec("torch"):
        from peers import time_peers

        for batch in sizes.batches:
            yield run_step(
                budget,
                f"{cell.name}, batch {batch}",
                "peers",
                pixels * batch,
                lambda batch=batch: time_peers(cell, sizes, batch, seconds),
            )


def measure_all(
    asked: argparse.Namespace, sizes: Sizes, budget: Budget
) -> Iterator[dict[str, Any]]:
    """Yield the content of the JSON file after every cell, because the run may be stopped early."""
    content = {
        "environment": environment.describe(),
        "commit": _ask("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "settings": asdict(sizes),
        "limit_seconds": asked.time_limit,
        "steps": [],
        "rows": [],
        "not_timed": [],
    }
    for cell in cells(sizes, asked.mechanisms, asked.precisions):
        steps = []
        for step in measure(cell, sizes, asked.exports, budget, asked.seconds):
            steps.append(step)
            show(step)
        content["steps"] += [
            {name: fact for name, fact in asdict(step).items() if name != "found"} for step in steps
        ]
        content["rows"] += rows_of(cell.name, steps)
        content["not_timed"] += [
            {"cell": cell.name, **row} for step in steps for row in step.found.get("not_timed", ())
        ]
        content["seconds"] = round(time.monotonic() - budget.started, 1)
        yield content


def _ask(*command: str) -> str | None:
    """Return the output of a command, or None where the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def show(step: Step) -> None:
    """Print one line for a step."""
    said = f"{step.cell:<32}{step.step:<8}{step.status:<9}{step.seconds:7.1f} s  {step.reason}"
    print(said.rstrip(), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build, prove and time on an NVIDIA GPU.")
    default = ROOT / "build" / "gpu"
    parser.add_argument("exports", type=Path, nargs="?", default=default, help=str(default))
    parser.add_argument("--prepare", action="store_true", help="make the exports only")
    parser.add_argument("--dry", action="store_true", help="tiny models, also without a GPU")
    parser.add_argument("--time-limit", type=float, default=480.0, metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each batch")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results" / "gpu.json")
    for name, choices in (("--mechanisms", MECHANISMS), ("--precisions", PRECISIONS)):
        parser.add_argument(name, nargs="+", choices=choices, default=choices)
    return parser.parse_args(arguments)


def prepare(asked: argparse.Namespace, sizes: Sizes) -> int:
    """Make the exports; return 0 if all are there."""
    made = [
        export_cell(cell, sizes, asked.exports / cell.name, Budget(NO_LIMIT))
        for cell in cells(sizes, asked.mechanisms, asked.precisions)
    ]
    failed = [step for step in made if step is not None and step.status != "done"]
    for step in failed:
        show(step)
    print(f"{len(made) - len(failed)} of {len(made)} exports are in {asked.exports}")
    return int(bool(failed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 if at least one runtime was timed."""
    asked = parse(arguments)
    sizes = DRY if asked.dry else FULL
    if asked.prepare:
        return prepare(asked, sizes)
    gpu = look_for_gpu()
    if gpu.gpu is None and not asked.dry:
        print(f"{gpu.why_not}; --dry tries the script without one", file=sys.stderr)
        return 2
    content: dict[str, Any] = {"rows": []}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for content in measure_all(asked, sizes, Budget(asked.time_limit)):
        asked.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        asked.out.with_suffix(".md").write_text(page(content), encoding="utf-8")
    counts = Counter(step["status"] for step in content.get("steps", ()))
    print(", ".join(f"{count} steps {status}" for status, count in counts.items()))
    print(f"{asked.out} and .md")
    return 0 if content["rows"] else 1


if __name__ == "__main__":
    sys.exit(main())
