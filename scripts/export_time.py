"""Compare how long two commits take to export, stage by stage.

    git worktree add /tmp/old 62925e1
    python scripts/export_time.py --old /tmp/old -- --attn fastformer --res 512

Both checkouts export in turn, each in a process of its own, the other one first in every second
round. It prints the median of every stage and of their sum without `latency`, with the load of the
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
UNTIMED = "latency"  # it takes as long as it is told


def export(checkout: Path, options: Sequence[str], folder: Path) -> dict[str, float]:
    """Export once with the code of a checkout; return the seconds of its stages."""
    command = [sys.executable, "-m", "exporter", "export", *options, "--quiet", "-o", str(folder)]
    surroundings = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(command, cwd=checkout, env=surroundings, check=True)
    report = json.loads((folder / "report.json").read_text())
    return {stage["name"]: stage["seconds"] for stage in report["stages"]}


def summarise(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Give the median of every stage, and of the sum without the untimed stage (pure)."""
    names = list(dict.fromkeys(name for stages in rounds for name in stages))
    medians = {name: float(np.median([r.get(name, 0.0) for r in rounds])) for name in names}
    sums = [sum(s for name, s in r.items() if name != UNTIMED) for r in rounds]
    return medians | {f"all but {UNTIMED}": float(np.median(sums))}


def main() -> None:
    """Time both checkouts in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--old", type=Path, required=True, help="another checkout")
    parser.add_argument("--new", type=Path, default=ROOT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="+", help="options of tsformer export, after --")
    given = parser.parse_args()
    sides = {"old": given.old.resolve(), "new": given.new.resolve()}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for done in range(given.rounds):
        for name in list(sides)[:: -1 if done % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                taken[name].append(export(sides[name], given.options, Path(folder) / "made"))
            print(f"{name}: {taken[name][-1]}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    old, new = summarise(taken["old"]), summarise(taken["new"])
    print(f"{'stage':<18}{'old':>8}{'new':>8}{'ratio':>7}")
    for stage in dict.fromkeys((*new, *old)):
        before, after = old.get(stage, 0.0), new.get(stage, 0.0)
        ratio = f"{after / before:.2f}" if before else "-"
        print(f"{stage:<18}{before:>8.1f}{after:>8.1f}{ratio:>7}")


if __name__ == "__main__":
    main()
