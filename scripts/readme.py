"""Put measured output into README.md: no figure there is typed by hand.

python scripts/readme.py --record    measure, write scripts/results/, then as below
                                     (accuracy.py, bench_peers.py and figure.py measure the rest)
python scripts/readme.py             write the blocks of README.md from scripts/results/
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

from exporter.report import ms, ratio, sci

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "scripts" / "results"
COMMAND = ["tsformer", "export", "--attn", "fastformer", "--res", "512"]
TABLE_RES = "224"


def main() -> None:
    """Measure if asked to, then render."""
    parser = argparse.ArgumentParser(description="Put measured output into README.md.")
    parser.add_argument("--record", action="store_true", help="measure anew")
    if parser.parse_args().record:
        record()
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")


def record() -> None:
    """Run the README's command and the three attention types, and keep what they gave."""
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


def render(readme: str) -> str:
    """Replace the marked blocks of the README (pure, given the results)."""
    shown = (RESULTS / "export.txt").read_text(encoding="utf-8")
    measured = json.loads((RESULTS / "attention.json").read_text(encoding="utf-8"))
    output = f"```console\n$ {' '.join(COMMAND)}\n{shown}```\n"
    trained = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    blocks = {
        "output": output,
        "attention": attention_table(measured),
        "accuracy": accuracy_table(trained),
        "published": published_table(read("published")),
        "figure": figure(read("figure")),
        "mechanisms": mechanisms_table(read("mechanisms")),
        "peers": peers_table(read("peers")),
        "limit": limit_table(read("limit")),
        "base": base_table(read("base")),
    }
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: written by scripts/readme.py -->\n", f"<!-- /{name} -->"
        before, _, rest = readme.partition(begin)
        _, _, after = rest.partition(end)
        readme = f"{before}{begin}{block}{end}{after}"
    return readme


def read(name: str) -> dict[str, Any]:
    """One of the files that `bench_peers.py` wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def published_table(measured: dict[str, Any]) -> str:
    """How many times as fast as the published package, as Markdown."""
    rows = {(r["mechanism"], r["resolution"], r["batch"]): r for r in measured["rows"]}
    places = sorted({key[1:] for key in rows})
    lines = [
        "| `--attn` | " + " | ".join(f"{side} px, {batch}" for side, batch in places) + " |",
        "|---" * (1 + len(places)) + "|",
    ]
    for attn in ATTENTIONS:
        cells = (ratio(rows[attn, *place]["ratio"]) for place in places)
        lines.append(f"| `{attn}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", where(measured)]) + "\n"


def figure(measured: dict[str, Any]) -> str:
    """The picture with its words, and how time grows, as Markdown."""
    tokens = measured["attention_exponents"][0]["tokens"]
    grown = ", ".join(
        f"{row['exponent']:.2f} for {row['mechanism']} ({row['low']:.2f} to {row['high']:.2f})"
        for row in measured["attention_exponents"]
    )
    return (
        f"![{measured['alt']}](scripts/results/figure.svg)\n\n"
        f"Time grows with the number of tokens to the power of {grown}: attention alone, in eager "
        f"mode, {tokens[0]} to {tokens[-1]} tokens.\n"
    )


def mechanisms_table(measured: dict[str, Any]) -> str:
    """One attention type against another, both as exported, as Markdown."""
    lines = [
        "| pixels | `--attn` | time | against | time | ratio (95 % interval) |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(measured["rows"], key=lambda row: (row["mechanism"], row["resolution"])):
        _, _, other = row["peer"].partition("@")
        lines.append(
            f"| {row['resolution']} | `{row['mechanism']}` | {ms(row['ours_p50_ms'])} ms "
            f"| `{other}` | {ms(row['peer_p50_ms'])} ms | {sure_ratio(row)} |"
        )
    return "\n".join([*lines, "", where(measured)]) + "\n"


def base_table(measured: dict[str, Any]) -> str:
    """The base model of Hugging Face against its peers, with errors, as Markdown."""
    lines = [
        "| ours | error | peer | error | ratio (95 % interval) |",
        "|---|---|---|---|---|",
    ]
    latest = {(row["ours"], row["precision"], row["peer"]): row for row in measured["rows"]}
    for row in latest.values():
        if row["status"] == "timed":
            ours, peer = (
                f"{ms(row[f'{side}_p50_ms'])} ms, {in_words(row[side])}"
                for side in ("ours", "peer")
            )
            lines.append(
                f"| {ours} {row['precision']} | {sci(row['ours_rel_l2'])} | {peer} "
                f"| {sci(row['peer_rel_l2'])} | {sure_ratio(row)} |"
            )
    return "\n".join([*lines, "", where(measured)]) + "\n"


def in_words(side: str) -> str:
    """`plain/openvino` as `plain, openvino`, and what is meant by `unmatched`."""
    return side.replace("/", ", ").replace("unmatched", "torch.compile without its pattern matcher")


def peers_table(measured: dict[str, Any]) -> str:
    """Our better graph against the best of its peers, as Markdown."""
    lines = [
        "| `--attn` | pixels | ours, in | best peer | ratio (95 % interval) |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(measured["closest"], key=lambda row: row["resolution"]):
        source, _, runtime = row["ours"].partition("/")
        runtime += ", `--optimize-for tensorrt`" if source == "uncut" else ""
        peer = row["peer"].replace("plain/", "plain export, ").replace("export, compile", "compile")
        ours, theirs = f"{ms(row['ours_p50_ms'])} ms", f"{ms(row['peer_p50_ms'])} ms"
        lines.append(
            f"| `{row['mechanism']}` | {row['resolution']} | {ours}, {runtime} "
            f"| {theirs}, {peer} | {sure_ratio(row)} |"
        )
    return "\n".join([*lines, "", where(measured)]) + "\n"


def limit_table(measured: dict[str, Any]) -> str:
    """How near the graphs are to their matrix products alone, as Markdown."""
    lines = [
        "| `--attn` | pixels | in | a run | its products alone | share (95 % interval) |",
        "|---|---|---|---|---|---|",
    ]
    for row in measured["rows"]:
        _, _, runtime = row["side"].partition("/")
        share = f"{row['share']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        lines.append(
            f"| `{row['mechanism']}` | {row['resolution']} | {runtime} | {ms(row['p50_ms'])} ms "
            f"| {ms(row['products_ms'])} ms, {row['products_gflop_per_s']:.0f} GFLOP/s | {share} |"
        )
    return "\n".join([*lines, "", where(measured)]) + "\n"


def sure_ratio(row: dict[str, Any]) -> str:
    """A ratio and its interval."""
    return f"{ratio(row['ratio'])} ({row['low']:.2f} to {row['high']:.2f})"


def where(measured: dict[str, Any]) -> str:
    """What a table was measured on, in a sentence."""
    facts, threads = measured["environment"], measured["rows"][0]["threads"]
    packages = facts["packages"]
    days = sorted({row.get("date", facts["date"])[:10] for row in measured["rows"]})
    return (
        f"Medians of paired ratios, measured {' and '.join(days)} on {facts['cpu']} ({threads} "
        f"threads), torch {packages['torch']}, onnxruntime {packages['onnxruntime']}, openvino "
        f"{packages['openvino']}."
    )


def attention_table(measured: dict[str, Any]) -> str:
    """The measured half of the table of attention types, as Markdown."""
    lines = [
        f"| at {measured['res']} px, one clip | error (allowed) | ONNX Runtime p50 | against eager "
        "| model.onnx | model.engine |",
        "|---|---|---|---|---|---|",
    ]
    for row in measured["rows"]:
        parity, latency = row["parity"], row["latency"]
        lines.append(
            f"| `{row['attn']}` | {sci(parity['rel_l2'])} ({sci(parity['tolerance'])}) "
            f"| {ms(latency['p50_ms'])} ms | {ratio(latency['ratio_to_eager'])} "
            f"| {row['onnx_bytes'] / 1e6:.1f} MB | {(row['engine']['bytes'] or 0) / 1e6:.1f} MB |"
        )
    runs = sorted({row["latency"]["runs"] for row in measured["rows"]})
    shown = str(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    environment, latency = measured["rows"][0]["environment"], measured["rows"][0]["latency"]
    packages = environment["packages"]
    lines += [
        "",
        f"Measured {environment['date'][:10]} on {environment['cpu']} ({latency['threads']} "
        f"threads), torch {packages['torch']}, onnxruntime {packages['onnxruntime']}; "
        f"{shown} interleaved runs.",
    ]
    return "\n".join(lines) + "\n"


def accuracy_table(rows: list[dict[str, Any]]) -> str:
    """What each precision costs a trained model, as Markdown."""
    lines = [
        "| trained model | precision | error (allowed) | judged in | accuracy (95 % interval) "
        "| model.onnx | ONNX Runtime against fp32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        whole = next(r for r in rows if (r["attn"], r["precision"]) == (row["attn"], "fp32"))
        lines.append(
            f"| `{row['attn']}` | {row['precision']} | {sci(row['rel_l2'])} "
            f"({sci(row['tolerance'])}) | {row['judge']} | {100 * row['accuracy']:.1f} % "
            f"({interval}) | {row['bytes'] / whole['bytes']:.2f}x | {ratio(row['ratio_to_fp32'])} |"
        )
    first = rows[0]
    lines += [
        "",
        f"{first['clips']} clips; measured {first['date'][:10]} on {first['cpu']} "
        f"({first['threads']} threads). The eager models reach "
        + ", ".join(
            f"{100 * row['eager_accuracy']:.1f} % ({row['attn']})"
            for row in rows
            if row["precision"] == "fp32"
        )
        + ".",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
