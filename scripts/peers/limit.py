"""Compare the time of our graphs with the time of their matrix products alone.

    python scripts/peers/limit.py                                         fastformer at 512 px
    python scripts/peers/limit.py --mechanisms regular --resolutions 224 512

The products alone are the least time that a runtime can need. A row describes one graph in one
runtime: the median time of a run, the time of the graph's matrix products in the same runtime, one
shape after the other, and the share of the products in the run. A share of 1 is the limit. Each
round measures runs and products. Each row has processes of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from bench_peers import ROOT, ChildError, count, describe, list_pairs, run_child, tell
from bench_peers import parse as parse_pairs
from sides import RUNTIMES, Pair, find_graph, make_clips, open_openvino, resolve
from timing import median_interval

from exporter.graph.cost import MatmulShape, count_cost, matmul_shapes
from exporter.machine.speed import matmul_model, measure_gemm, median_seconds
from model.config import MECHANISM_NAMES

SIDES = ("ours/onnxruntime", "ours/openvino")


def measure(pair: Pair, folder: Path) -> dict[str, Any]:
    """Count operations, and time runs and products in rounds; call this in a new process."""
    torch.set_num_threads(pair.threads)
    side = resolve(pair.ours, pair)
    video = make_clips(pair)
    run = RUNTIMES[side.runtime](side, pair, video, folder)
    graph = onnx.load(find_graph(side, pair, video, folder))
    shapes = matmul_shapes(graph, pair.batch)
    flops = count_cost(graph, pair.batch).matmul_flops
    prepare = in_openvino if side.runtime == "openvino" else None
    runs, products = [], []
    for _ in range(pair.rounds):
        runs.append(median_seconds(run, pair.seconds))
        rate = measure_gemm(shapes, pair.threads, seconds=pair.seconds, prepare=prepare)
        products.append(flops / rate)
    return {"flops": flops, "runs": runs, "products": products}


def in_openvino(shape: MatmulShape, threads: int) -> Callable[[], object]:
    """Prepare one product in OpenVINO."""
    request = open_openvino(matmul_model(shape).SerializeToString(), threads)
    request.get_tensor("left").data[:] = 1
    return partial(request.infer, share_outputs=True)  # the default copies the outputs


def measure_apart(pair: Pair, folder: Path, limit: float) -> dict[str, Any] | None:
    """Measure in `pair.processes` processes; if one fails, print that to stderr and return None."""
    try:
        parts = [run_child(__file__, pair, folder, limit) for _ in range(pair.processes)]
    except ChildError as error:
        print(f"{pair.ours}: {error}", file=sys.stderr)
        return None
    return summarise(pair, parts)


def summarise(pair: Pair, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Combine the results of several processes into one row (pure)."""
    shares = [np.divide(part["products"], part["runs"]) for part in parts]
    share, low, high = median_interval(*shares)
    products = np.median([part["products"] for part in parts])
    return {
        **{name: getattr(pair, name) for name in ("mechanism", "resolution", "batch", "threads")},
        "side": pair.ours,
        "p50_ms": float(1e3 * np.median([part["runs"] for part in parts])),
        "products_ms": float(1e3 * products),
        "products_gflop_per_s": float(parts[0]["flops"] / products / 1e9),
        "share": share,
        "low": low,
        "high": high,
        "processes": pair.processes,
        "rounds": pair.rounds,
    }


def line(row: dict[str, Any]) -> str:
    """Format one row of the printed table."""
    return (
        f"{row['mechanism']:<11}{row['resolution']:>4} px  {row['side']:<17}{row['p50_ms']:8.1f} ms"
        f"  products {row['products_ms']:8.1f} ms at {row['products_gflop_per_s']:.0f} GFLOP/s"
        f"  share {row['share']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time our graphs against their products.")
    parser.add_argument("--mechanisms", nargs="+", choices=MECHANISM_NAMES, default=["fastformer"])
    parser.add_argument("--resolutions", nargs="+", type=int, default=[512])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), metavar="SIDE")
    parser.add_argument("--processes", type=count, default=2, help="for each row")
    parser.add_argument("--rounds", type=count, default=8, help="for each process")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each half of a round")
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for each process")
    for name in ("--frames", "--dim", "--depth"):
        parser.add_argument(name, type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results" / "limit.json")
    return parser.parse_args(arguments)


def list_sides(asked: argparse.Namespace) -> list[Pair]:
    """List each graph in each runtime, paired with its products."""
    flags = ["--mechanisms", *asked.mechanisms, "--ours", *asked.sides, "--peers", "products"]
    flags += ["--resolutions", *map(str, asked.resolutions)]
    for name in ("processes", "rounds", "seconds", "threads", "frames", "dim", "depth"):
        given = getattr(asked, name)
        flags += [f"--{name}", str(given)] if given else []
    return list_pairs(parse_pairs(flags))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 if every row was measured."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["--child"]:
        print(json.dumps(measure(Pair(**json.loads(given[1])), Path(given[2]))))
        return 0
    asked = parse(given)
    content = {"environment": describe(), "command": tell(__file__, given, asked.out)}
    pairs, rows = list_sides(asked), []
    for _, case in itertools.groupby(pairs, lambda pair: (pair.mechanism, pair.resolution)):
        with tempfile.TemporaryDirectory() as folder:  # the pairs of a case share one graph
            for pair in case:
                if row := measure_apart(pair, Path(folder), asked.limit):
                    rows.append(row)
                    print(line(row), flush=True)
    if rows:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**content, "rows": rows}, indent=2)
        asked.out.write_text(text + "\n", encoding="utf-8")
    return 0 if len(rows) == len(pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
