"""Export every scheme with every attention type, and print the verdict of each.

    python scripts/grid.py [--res 64] [--depth 12] [--model fast_timesformer] [--out build/grid]

The exit code is 0 only if every export is proven. Where TensorRT-RTX is installed, every engine
must be built too. Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from exporter.cli import main as tsformer
from exporter.report import sci
from model.config import MECHANISM_NAMES, SCHEME_NAMES


def main() -> int:
    """Run the grid; return 0 if every cell passes."""
    parser = argparse.ArgumentParser(description="Export every scheme with every attention type.")
    parser.add_argument("--res", default="64")
    parser.add_argument("--depth", default="12")
    parser.add_argument("--model", default="fast_timesformer")
    parser.add_argument("--schemes", nargs="+", default=SCHEME_NAMES)
    parser.add_argument("--out", type=Path, default=Path("build/grid"))
    parser.add_argument("more", nargs="*", help="further options of tsformer export, after --")
    arguments = parser.parse_args()
    failed = 0
    for scheme in arguments.schemes:
        for attention in MECHANISM_NAMES:
            out = arguments.out / f"{scheme}-{attention}-{arguments.res}"
            command = ["export", "--model", arguments.model, "--scheme", scheme]
            command += ["--attn", attention, "--res", arguments.res, "--depth", arguments.depth]
            command += ["--bench-seconds", "0", "--quiet", "--force", "-o", str(out)]
            code = tsformer([*command, *arguments.more])
            failed += code != 0
            print(f"{scheme:<13}{attention:<11}exit {code}  {describe(out)}", flush=True)
    return int(failed > 0)


def describe(out: Path) -> str:
    """Describe one cell: its verdict, its error, and the first bytes of its engine."""
    if not (out / "report.json").exists():
        return "no report"
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    row = next(row for row in report["parity"] if row["runtime"] == "onnxruntime")
    engine = out / "model.engine"
    magic = engine.read_bytes()[:4] if engine.exists() else None
    errors = f"{sci(row['rel_l2'])} (allowed {sci(row['tolerance'])})"
    return f"{row['verdict']}  {errors}  engine {magic!r}  {report['engine']['status']}"


if __name__ == "__main__":
    sys.exit(main())
