"""Put measured output into README.md and the guide: no figure there is typed by hand.

python scripts/readme.py --record    measure, write scripts/results/, then as below
                                     (accuracy.py, bench_peers.py and figure.py measure the rest)
python scripts/readme.py             write the marked blocks from scripts/results/
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo import ATTENTIONS, find_clip
from fault_table import faults_table
from pages import ROOT, fill, table, write
from speed_tables import (
    base_table,
    half_table,
    limit_table,
    mechanisms_table,
    peers_table,
    published_table,
)

from exporter.report import ms, ratio, sci

RESULTS, FIGURE = ROOT / "scripts" / "results", ROOT / "docs" / "images" / "figure.json"
SCRIPT = "scripts/readme.py"
COMMAND = ["tsformer", "export", "--attn", "fastformer", "--res", "512"]
TABLE_RES = "224"
ACCURACY = "accuracy (95 % interval)"
COMPUTED = {  # what a type computes, and its cost in tokens
    "fastformer": ("additive attention: one global query, one global key", "linear"),
    "performer": ("softmax attention, approximated by FAVOR+ random features", "linear"),
    "regular": ("softmax attention", "quadratic"),
}


def main() -> None:
    """Measure if asked to, then render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="measure anew")
    if parser.parse_args().record:
        record()
    write(blocks(), SCRIPT)


def record() -> None:
    """Run the README's command and the three attention types; keep what they print and report."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shown = run(COMMAND, folder)
        (RESULTS / "export.txt").write_text(shown, encoding="utf-8")
        rows = []
        for attention in ATTENTIONS:
            clip = str(find_clip("bikes.mp4"))
            command = ["tsformer", "export", "--attn", attention, "--res", TABLE_RES]
            run([*command, "--video", clip, "-o", attention], folder)
            rows.append(summarize(Path(folder, attention, "report.json")))
    text = json.dumps({"res": TABLE_RES, "rows": rows}, indent=2)
    (RESULTS / "attention.json").write_text(text + "\n", encoding="utf-8")


def run(command: list[str], folder: str) -> str:
    """Run a command as a user would, in an empty folder; give what it printed."""
    program = Path(sys.executable).with_name(command[0])
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(
        [program, *command[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def summarize(path: Path) -> dict[str, Any]:
    """The figures of one report.json that the README shows, with their context."""
    report = json.loads(path.read_text(encoding="utf-8"))
    kept = ("tsformer", "date", "cpu", "cores", "packages")
    latency = next(row for row in report["latency"] if row["runtime"] == "onnxruntime")
    return {
        "attn": report["spec"]["attn"],
        "parity": next(row for row in report["parity"] if row["runtime"] == "onnxruntime"),
        "latency": {key: value for key, value in latency.items() if key != "samples_ms"},
        "onnx_bytes": report["graph"]["file_bytes"],
        "engine": {key: report["engine"].get(key) for key in ("flavour", "version", "bytes")},
        "environment": {key: report["environment"][key] for key in kept},
    }


def render(page: str) -> str:
    """Replace the marked blocks of a page (pure, given the results)."""
    return fill(page, blocks(), SCRIPT)


def blocks() -> dict[str, str]:
    """Every block that this script writes, by its name."""
    shown = (RESULTS / "export.txt").read_text(encoding="utf-8")
    return {
        "output": f"```console\n$ {' '.join(COMMAND)}\n{shown}```\n",
        "types": types_table(read("attention")),
        "attention": attention_table(read("attention")),
        "accuracy": accuracy_table(read("accuracy")),
        "published": published_table(read("published")),
        "figure": figure(json.loads(FIGURE.read_text(encoding="utf-8"))),
        "mechanisms": mechanisms_table(read("mechanisms")),
        "half": half_table(read("bf16")),
        "eight": half_table(read("eight")),
        "peers": peers_table(read("peers")),
        "limit": limit_table(read("limit")),
        "base": base_table(read("base")),
        "motion_files": motion_table(read("motion_files")),
        "faults": faults_table(read("faults")),
    }


def motion_table(measured: dict[str, Any]) -> str:
    """The lowest accuracy of each demo model on files of other lengths and rates, as Markdown."""

    def lowest(attention: str, sampling: str) -> str:
        rows = [r for r in measured["rows"] if (r["attn"], r["sampling"]) == (attention, sampling)]
        return f"{100 * min(row['accuracy'] for row in rows):.1f} %"

    names = {"stored": "the sampling that the checkpoint stores", "uniform": "`uniform`"}
    rows = [[name, *(lowest(a, key) for a in ATTENTIONS)] for key, name in names.items()]
    return table(["read by", *(f"`{attention}`" for attention in ATTENTIONS)], rows)


def read(name: str) -> Any:  # noqa: ANN401  # JSON
    """One of the committed result files."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def figure(measured: dict[str, Any]) -> str:
    """The picture with its words, and how time grows, as Markdown."""
    tokens = measured["attention_exponents"][0]["tokens"]
    grown = ", ".join(
        f"{row['exponent']:.2f} for {row['mechanism']} ({row['low']:.2f} to {row['high']:.2f})"
        for row in measured["attention_exponents"]
    )
    return (
        f"![{measured['alt']}](images/{FIGURE.stem}.svg)\n\n"
        f"Time grows with the number of tokens to the power of {grown}: attention alone, in eager "
        f"mode, {tokens[0]} to {tokens[-1]} tokens.\n"
    )


def types_table(measured: dict[str, Any]) -> str:
    """The attention types in short, with the main figures of each, as Markdown."""
    rows = [
        [
            f"`{row['attn']}`" + (" (default)" if row["attn"] == ATTENTIONS[0] else ""),
            *COMPUTED[row["attn"]],
            f"{sci(row['parity']['rel_l2'])} ({sci(row['parity']['tolerance'])})",
            ms(row["latency"]["p50_ms"]),
            ratio(row["latency"]["ratio_to_eager"]),
        ]
        for row in measured["rows"]
    ]
    headings = ["`--attn`", "computes", "cost", "error (allowed)", "p50 ms", "speed"]
    return table(headings, rows) + measured_on(measured)


def attention_table(measured: dict[str, Any]) -> str:
    """The figures of the attention types, as Markdown."""
    rows = [
        [
            f"`{row['attn']}`",
            f"{sci(row['parity']['rel_l2'])} ({sci(row['parity']['tolerance'])})",
            ms(row["latency"]["p50_ms"]),
            ratio(row["latency"]["ratio_to_eager"]),
            f"{row['onnx_bytes'] / 1e6:.1f} MB",
            f"{(row['engine']['bytes'] or 0) / 1e6:.1f} MB",
        ]
        for row in measured["rows"]
    ]
    headings = ["`--attn`", "error (allowed)", "p50 ms", "speed", "model.onnx", "model.engine"]
    return table(headings, rows) + measured_on(measured)


def measured_on(measured: dict[str, Any]) -> str:
    """What the attention types were measured on: a paragraph to stand below their table."""
    runs = sorted({row["latency"]["runs"] for row in measured["rows"]})
    shown = str(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    environment, latency = measured["rows"][0]["environment"], measured["rows"][0]["latency"]
    packages = environment["packages"]
    return (
        f"\nONNX Runtime, {measured['res']} px, one clip. Measured {environment['date'][:10]} on "
        f"{environment['cpu']} ({latency['threads']} threads), torch {packages['torch']}, "
        f"onnxruntime {packages['onnxruntime']}; {shown} interleaved runs.\n"
    )


def accuracy_table(measured: list[dict[str, Any]]) -> str:
    """What each precision costs a trained model, as Markdown."""
    whole = {row["attn"]: row for row in measured if row["precision"] == "fp32"}
    rows = [
        [
            f"`{row['attn']}`",
            row["precision"],
            f"{sci(row['rel_l2'])} ({sci(row['tolerance'])})",
            row["judge"],
            f"{100 * row['accuracy']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})",
            f"{row['bytes'] / whole[row['attn']]['bytes']:.2f}x",
            ratio(row["ratio_to_fp32"]),
        ]
        for row in measured
    ]
    headings = ["model", "precision", "error (allowed)", "judged in", ACCURACY, "size", "speed"]
    first = measured[0]
    eager = ", ".join(
        f"{100 * row['eager_accuracy']:.1f} % ({attn})" for attn, row in whole.items()
    )
    return table(headings, rows) + (
        f"\n{first['clips']} clips; measured {first['date'][:10]} on {first['cpu']} "
        f"({first['threads']} threads). The eager models reach {eager}.\n"
    )


if __name__ == "__main__":
    main()
