"""Export the trained demo models in every precision, and record error, accuracy, size and speed.

python scripts/accuracy.py    writes scripts/results/accuracy.json, which scripts/readme.py reads
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import result_rows

from exporter.cli import main as tsformer
from exporter.spec import PRECISIONS
from model.config import MECHANISM_NAMES

FOLDER = Path(__file__).resolve().parent
ATTENTIONS = MECHANISM_NAMES[::-1]  # the default first
# One export has several runtimes. A row describes this one.
JUDGE = {"fp32": "onnxruntime", "fp16": "onnx-reference", "bf16": "onnx-reference"}


def main() -> int:
    """Measure all pairs of attention and precision; return the highest exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--attn", nargs="+", default=ATTENTIONS, choices=ATTENTIONS)
    parser.add_argument("--precision", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "accuracy.json")
    parser.add_argument("--bench-seconds", default="5")
    arguments = parser.parse_args()
    rows, codes = [], [0]
    with tempfile.TemporaryDirectory() as folder:
        for attention in arguments.attn:
            for precision in arguments.precision:
                out = Path(folder, f"{attention}-{precision}")
                checkpoint = FOLDER / "checkpoints" / f"motion-{attention}.safetensors"
                command = ["export", "--checkpoint", str(checkpoint), "--precision", precision]
                command += ["--eval", "motion", "--bench-seconds", arguments.bench_seconds]
                code = tsformer([*command, "-o", str(out), "--quiet"])
                if code not in (0, 5):  # 5: written, but not proven
                    raise SystemExit(f"{attention} in {precision} ended with exit code {code}")
                codes.append(code)
                report = json.loads((out / "report.json").read_text(encoding="utf-8"))
                rows.append(summarize(report, attention, precision))
                print(json.dumps(rows[-1]), flush=True)
    result_rows.add(arguments.out, rows, lambda row: (row["attn"], row["precision"]))
    return max(codes)


def summarize(report: dict[str, Any], attention: str, precision: str) -> dict[str, Any]:
    """Return the error, accuracy, size and speed of one export, with their context."""
    judge = JUDGE.get(precision, "onnxruntime")

    def row(table: str, runtime: str = judge) -> dict[str, Any]:
        of_runtime = (row for row in report[table] if row["runtime"] == runtime)
        return next((row for row in of_runtime if row["precision"] == precision), {})

    graph, environment = report["graph"], report["environment"]
    return {
        "attn": attention,
        "precision": precision,
        "judge": judge,
        **{key: row("parity").get(key) for key in ("verdict", "rel_l2", "tolerance")},
        **{key: row("accuracy").get(key) for key in ("accuracy", "low", "high", "clips")},
        "eager_accuracy": report["accuracy"][0]["accuracy"],
        "bytes": graph["file_bytes"],
        "fp32_bytes": graph.get("fp32_bytes"),
        "casts": graph["casts"],
        "ratio_to_fp32": row("latency", "onnxruntime").get("ratio_to_fp32"),
        "engine_bytes": report["engine"].get("bytes"),
        **{key: environment[key] for key in ("date", "cpu", "threads", "cores_busy_with_others")},
    }


if __name__ == "__main__":
    sys.exit(main())
