"""Measure and draw seconds over resolution: the published package in eager mode, and ours.

    python scripts/peers/figure.py                        measure, write figure.{json,png,svg}
    python scripts/peers/figure.py --from FIGURE.json     draw an earlier measurement

The figure repeats that of the published package. `bench_peers.py` measures it: it runs the
published package in eager mode and our graph in ONNX Runtime in turn. The script also fits the
exponent of time over tokens. The exponent of the attention part comes from one eager module of each
mechanism at growing token counts. The exponent of the whole model comes from the figure's points.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_peers
import numpy as np
import torch
from sides import Pair
from timing import median_interval

from model.attention import MECHANISMS
from model.config import MECHANISM_NAMES

RESOLUTIONS = (32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
TOKENS = (1024, 2048, 4096, 8192)
LARGE = 224  # from this resolution on, tokens dominate the model's time, not operator launches
STYLES = {  # markers differ too, for readers who see no colours; contrast on white at least 3:1
    "regular": ("#D55E00", "s"),
    "performer": ("#0072B2", "^"),
    "fastformer": ("#008060", "o"),
}
DASHES = {"peer_p50_ms": "--", "ours_p50_ms": "-"}
NAMES = {"peer_p50_ms": "published, eager", "ours_p50_ms": "tsformer, ONNX Runtime"}
Rows = Sequence[Mapping[str, Any]]


# --- measuring


def list_pairs(asked: argparse.Namespace) -> list[Pair]:
    """List the pairs, published package against our graph, by mechanism and resolution."""
    flags = ["--batches", str(asked.batch), "--threads", str(asked.threads)]
    flags += ["--processes", str(asked.processes)]
    flags += ["--rounds", str(asked.rounds), "--seconds", str(asked.seconds)]
    flags += ["--ours", "ours/onnxruntime", "--peers", "published/eager"]
    flags += ["--mechanisms", *asked.mechanisms, "--resolutions", *map(str, asked.resolutions)]
    for name in ("frames", "dim", "depth"):
        given = getattr(asked, name)
        flags += [f"--{name}", str(given)] if given else []
    return bench_peers.list_pairs(bench_peers.parse(flags))


def time_attention(mechanisms: Sequence[str], tokens: Sequence[int], rounds: int) -> np.ndarray:
    """Time attention modules in turn; return seconds `(rounds, mechanisms, tokens)`."""
    modules = [MECHANISMS[name](128).eval() for name in mechanisms]
    inputs = [torch.randn(1, n, 128) for n in tokens]
    seconds = np.empty((rounds, len(modules), len(inputs)))
    with torch.inference_mode():
        for taken in (np.empty(seconds.shape[1:]), *seconds):  # the first round warms up
            for place, x in enumerate(inputs):
                for mechanism, module in enumerate(modules):
                    before = time.perf_counter()
                    module(x)
                    taken[mechanism, place] = time.perf_counter() - before
    return seconds


def fit_exponent(tokens: Sequence[float], seconds: Sequence[float]) -> float:
    """Fit the slope of log time over log tokens (pure)."""
    return float(np.polyfit(np.log(tokens), np.log(seconds), 1)[0])


def measure_exponents(
    mechanisms: Sequence[str], tokens: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Fit each mechanism's attention exponent: the median over rounds and its interval."""
    seconds = time_attention(mechanisms, tokens, rounds)
    found = []
    for index, name in enumerate(mechanisms):
        slopes = np.array([fit_exponent(tokens, taken) for taken in seconds[:, index]])
        exponent, low, high = median_interval(slopes)
        milliseconds = (np.median(seconds[:, index], axis=0) * 1e3).tolist()
        found.append(
            {
                "mechanism": name,
                "exponent": exponent,
                "low": low,
                "high": high,
                "tokens": list(tokens),
                "p50_ms": milliseconds,
            }
        )
    return found


def model_exponents(rows: Rows, smallest: int) -> list[dict[str, Any]]:
    """Fit the whole model's exponent by mechanism and side, from `smallest` pixels on (pure)."""
    found = []
    for name, side in ((name, side) for name in STYLES for side in NAMES):
        points = [row for row in find_points(rows, name) if row["resolution"] >= smallest]
        if len(points) > 1:
            tokens = [row["frames"] * (row["resolution"] / 16) ** 2 for row in points]
            exponent = fit_exponent(tokens, [row[side] for row in points])
            found.append({"mechanism": name, "side": NAMES[side], "exponent": exponent})
    return found


# --- drawing


def find_points(rows: Rows, mechanism: str) -> list[Mapping[str, Any]]:
    """Return the timed rows of one mechanism, sorted by resolution."""
    timed = (row for row in rows if (row["mechanism"], row["status"]) == (mechanism, "timed"))
    return sorted(timed, key=lambda row: row["resolution"])


def draw(content: Mapping[str, Any], stem: Path) -> None:
    """Write the figure as PNG and SVG."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    # Fixed settings: the same results give the same file.
    settings: dict[Any, Any] = {"svg.hashsalt": "tsformer", "svg.fonttype": "path", "font.size": 11}
    with mpl.rc_context(settings):
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained", facecolor="white")
        draw_lines(axes, content["rows"])
        axes.set_title(title(content), fontsize=11, loc="left")
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            figure.savefig(f"{stem}.{kind}", dpi=160, facecolor="white", metadata=metadata)
        plt.close(figure)


def draw_lines(axes: Any, rows: Rows) -> None:  # noqa: ANN401  # matplotlib is imported late
    """Draw the lines on logarithmic axes, so that equal ratios have equal distances."""
    for mechanism, (colour, marker) in STYLES.items():
        points = find_points(rows, mechanism)
        places = [row["resolution"] for row in points]
        for side, dash in DASHES.items() if points else ():
            seconds = [row[side] / 1e3 for row in points]
            label = f"{mechanism}, {NAMES[side]}"
            axes.plot(places, seconds, dash, color=colour, marker=marker, ms=5, label=label)
    axes.set(xscale="log", yscale="log")
    shown = sorted({row["resolution"] for row in rows})
    axes.set_xticks(shown, [str(place) for place in shown])
    axes.minorticks_off()
    axes.set(xlabel="resolution (pixels a side)", ylabel="seconds per forward pass of the batch")
    axes.grid(color="#D8D8D8", linewidth=0.6)
    axes.legend(fontsize=9)


def title(content: Mapping[str, Any]) -> str:
    """Write the title: the content of the figure, and the machine."""
    row, facts = content["rows"][0], content["environment"]
    clips = f"{row['batch']} clip{'s' if row['batch'] > 1 else ''} of {row['frames']} frames"
    return f"Forward pass, {clips}, float32\n{facts['cpu']}, {row['threads']} threads"


def alternative(content: Mapping[str, Any]) -> str:
    """Describe the figure in words, for readers who cannot see it (pure)."""
    row = content["rows"][0]
    said = []
    for mechanism in STYLES:
        points = find_points(content["rows"], mechanism)
        if points:
            last = points[-1]
            ours, peer = (last[f"{side}_p50_ms"] / 1e3 for side in ("ours", "peer"))
            said.append(
                f"{mechanism} {peer:.3g} s published and {ours:.3g} s ours at "
                f"{last['resolution']} px, {last['ratio']:.2f} times as fast"
            )
    return (
        "Line chart, both axes logarithmic: seconds of a forward pass over resolution for three "
        f"attention types, the published package in eager mode against tsformer's graph in ONNX "
        f"Runtime, batch {row['batch']}. " + "; ".join(said) + "."
    )


# --- the whole run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Draw seconds over resolution.")
    parser.add_argument("--from", dest="source", type=Path, help="draw this, do not measure")
    parser.add_argument("--batch", type=int, default=4)
    choices = list(MECHANISM_NAMES)
    parser.add_argument("--mechanisms", nargs="+", choices=choices, default=choices)
    parser.add_argument("--resolutions", nargs="+", type=int, default=list(RESOLUTIONS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--threads", type=bench_peers.count, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--processes", type=bench_peers.count, default=1, help="for each point")
    parser.add_argument(
        "--rounds", type=bench_peers.count, default=50, help="limit for each process"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="start no round after this")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for each process")
    for name in ("--frames", "--dim", "--depth"):
        parser.add_argument(name, type=int)
    default = bench_peers.ROOT / "docs" / "images" / "figure"  # the guide shows it
    parser.add_argument("--out", type=Path, default=default, help="path without suffix")
    return parser.parse_args(arguments)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that the figure shows, with its context."""
    torch.set_num_threads(asked.threads)
    content: dict[str, Any] = {"environment": bench_peers.describe(), "notes": bench_peers.NOTES}
    attention = measure_exponents(asked.mechanisms, asked.tokens, min(asked.rounds, 10))
    rows = []
    for row in bench_peers.measure_all(list_pairs(asked), asked.limit):
        rows.append(row)
        print(bench_peers.line(row), flush=True)
    content |= {"rows": rows, "attention_exponents": attention}
    content["model_exponents"] = model_exponents(rows, LARGE)
    return content | {"alt": alternative(content)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or read, then draw; return 0 if at least one pair was timed."""
    asked = parse(arguments)
    if asked.source:
        content = json.loads(asked.source.read_text(encoding="utf-8"))
    else:
        content = measure(asked)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2) + "\n"
        asked.out.with_suffix(".json").write_text(text, encoding="utf-8")
    for row in content["attention_exponents"]:
        interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
        print(f"{row['mechanism']:<11}attention alone: tokens^{row['exponent']:.2f} {interval}")
    for row in content["model_exponents"]:
        print(f"{row['mechanism']:<11}{row['side']}: tokens^{row['exponent']:.2f}")
    if not any(row["status"] == "timed" for row in content["rows"]):
        print("nothing was timed: there is nothing to draw", file=sys.stderr)
        return 1
    draw(content, asked.out)
    print(f"{asked.out}.png and .svg: {content['alt']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
