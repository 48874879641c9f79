"""Time sets of rewrites in ONNX Runtime and OpenVINO: what `exporter.rewrite.choose` follows.

    python scripts/peers/layouts.py                                   fp32 and int8, every size
    python scripts/peers/layouts.py --sets all --mechanisms regular   rules one by one
    python scripts/peers/layouts.py --precisions bf16 --depth 12      a CPU with bf16

Set PYTHONPATH to the project's directory where tsformer is not installed.

A cell is a mechanism, a size, a batch, a precision and a depth; each cell has a process of its own,
which times every set in every runtime, interleaved. A row describes one set in one runtime: its
median time, and how many times as fast it is as the model as it is traced (`none`) in that runtime.
What this CPU cannot run is a row too. The sets:

    none       the model as it is traced
    few        the rewrites that leave attention as it is: `class_token` and `fold_fc`
    cpu        the layout of ONNX Runtime
    uncut      the same without the pieces and sums for the caches of a CPU
    openvino   the layout that an export takes for OpenVINO
    - NAME     cpu, without one rule
    + NAME     few, with one more rule

Rows are merged into scripts/results/layouts.json, so that the table can be measured in parts and on
several CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import result_rows
from timing import median_interval

from exporter.errors import RuntimeFailure
from exporter.machine.environment import describe
from exporter.rewrite import REWRITES, rewrite
from exporter.rewrite.choose import rewrites_to_skip
from exporter.runners.base import Runner
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.runners.openvino import WITH_BF16, OpenVinoRunner
from exporter.spec import DEFAULT_OPSET, PRECISIONS, ExportSpec
from exporter.to_onnx.export import export_onnx
from exporter.to_onnx.quantize import quantize
from model import FastTimeSformer
from model.config import MECHANISM_NAMES

RESULTS = Path(__file__).resolve().parents[1] / "results" / "layouts.json"
SETS = ("none", "few", "cpu", "uncut", "openvino", "all")
FEW = {"class_token", "fold_fc"}
PIECES = {"fold_norm", "bias_apart", "cut_attention", "cut_feed_forward"}
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
WARMUP_RUNS, MIN_ROUNDS, FRAMES = 3, 5, 5


@dataclass(frozen=True)
class Cell:
    """One model in one precision, as clips of `res` x `res` pixels, `batch` of them in a run."""

    mechanism: str
    res: int
    batch: int
    precision: str
    depth: int
    threads: int

    def make(self) -> FastTimeSformer:
        """Make the model, with random weights."""
        torch.manual_seed(0)
        size, named = (self.res, self.res), {"depth": self.depth, "num_classes": 2}
        return FastTimeSformer(FRAMES, 3, *size, attn_mechanism=self.mechanism, **named).eval()  # type: ignore[arg-type]

    def rules(self, name: str) -> list[str]:
        """List the rewrites of the set of this name, in the order in which they are applied."""
        spec = ExportSpec(precision="int8" if self.precision == "int8" else "fp32")
        cpu = REWRITES.keys() - rewrites_to_skip(spec, self.make(), "onnxruntime")
        sign, _, rule = name.partition(" ")
        sets = {"none": set(), "few": FEW, "cpu": cpu, "uncut": cpu - PIECES}
        if sign == "openvino":
            ours = ExportSpec(precision=self.precision)
            sets[sign] = REWRITES.keys() - rewrites_to_skip(ours, self.make(), "openvino")
        taken = sets | {"-": cpu - {rule}, "+": FEW | {rule}}
        return [known for known in REWRITES if known in taken[sign]]


def names_of_sets(sets: Sequence[str]) -> Iterator[str]:
    """List the sets to measure; `all` adds every rule that is one more or one less."""
    if "all" not in sets:
        yield from sets
        return
    yield from SETS[:-1]
    for rule, rewriting in REWRITES.items():
        if rewriting.targets == {"tensorrt"} or rule == "fold_pixels":
            continue
        if "onnxruntime" in rewriting.targets:
            yield f"- {rule}"
        if rule not in FEW:
            yield f"+ {rule}"


def measure(cell: Cell, sets: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """Time the sets of a cell in every runtime, interleaved; call this in a new process."""
    torch.set_num_threads(cell.threads)
    layouts = {tuple(cell.rules(name)): name for name in reversed(list(names_of_sets(sets)))}
    clip = torch.randn(cell.batch, FRAMES, 3, cell.res, cell.res)
    facts = asdict(cell) | _machine()
    rows: list[dict[str, Any]] = []
    timed: list[tuple[dict[str, Any], Runner]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as resources:
        for number, (rules, name) in enumerate(sorted(layouts.items(), key=lambda x: x[1])):
            graph = write_graph(cell, rules, clip, Path(folder) / f"{number}.onnx")
            for runtime in ("onnxruntime", "openvino", WITH_BF16):
                if runtime == WITH_BF16 and cell.precision != "int8":
                    continue
                row = facts | {"runtime": runtime, "set": name, "rules": list(rules)}
                try:
                    runner = resources.enter_context(open_in(runtime, graph, cell))
                except RuntimeFailure as error:
                    rows.append(row | {"status": "not run", "reason": str(error)})
                else:
                    timed.append((row, runner))
        before = os.getloadavg()[0]
        taken = interleave([runner for _, runner in timed], {"video": clip.numpy()}, seconds)
    both = list(zip((row for row, _ in timed), taken, strict=True))
    plain = {row["runtime"]: times for row, times in both if not row["rules"]}
    for row, times in both:
        ratio, low, high = median_interval(plain[row["runtime"]] / times)
        p50 = round(float(np.median(times) * 1e3), 3)
        figures = {"p50_ms": p50, "ratio": ratio, "low": low, "high": high, "rounds": len(times)}
        rows.append(row | {"status": "timed", "load": before} | figures)
    return rows


def write_graph(cell: Cell, rules: Sequence[str], clip: torch.Tensor, path: Path) -> Path:
    """Write the graph of a set; OpenVINO computes bf16 and fp16 from a float32 graph."""
    skip = [name for name in REWRITES if name not in rules]
    export_onnx(rewrite(cell.make(), skip, cell.batch), {"video": clip}, path, opset=DEFAULT_OPSET)
    if cell.precision == "int8":
        quantize(path, path, {"video": clip.numpy()}, form="onnxruntime")
    return path


def open_in(runtime: str, graph: Path, cell: Cell) -> Runner:
    """Open a graph in a runtime, in the precision of the cell."""
    if runtime == "onnxruntime":
        if cell.precision in ("fp16", "bf16"):
            raise RuntimeFailure(f"ONNX Runtime does not compute in {cell.precision} on a CPU")
        return OnnxRuntimeRunner(graph, threads=cell.threads, precision=cell.precision)
    rest = "bf16" if runtime == WITH_BF16 else "fp32"
    return OpenVinoRunner(graph, cell.precision, threads=cell.threads, rest=rest)


def interleave(
    runners: Sequence[Runner], inputs: dict[str, np.ndarray], seconds: float
) -> list[np.ndarray]:
    """Time every runner once in each round, each round from another one on; give seconds."""
    for runner in runners:
        for _ in range(WARMUP_RUNS):
            runner.run(inputs)
    taken: list[list[float]] = [[] for _ in runners]
    started, done = time.perf_counter(), 0
    while done < MIN_ROUNDS or time.perf_counter() - started < seconds:
        for place in range(len(runners)):
            index = (place + done) % len(runners)
            before = time.perf_counter()
            runners[index].run(inputs)
            taken[index].append(time.perf_counter() - before)
        done += 1
    return [np.array(times) for times in taken]


def _machine() -> dict[str, Any]:
    """Describe what decides the figures."""
    facts = describe()
    info = Path("/proc/cpuinfo")
    known = set(info.read_text().split()) if info.exists() else set()
    return {
        "cpu": facts["cpu"],
        "flags": [flag for flag in FLAGS if flag in known],
        "packages": {name: facts["packages"].get(name) for name in ("onnxruntime", "openvino")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies a row: its cell, its runtime and set, and the CPU."""
    cell = tuple(row[name] for name in Cell.__dataclass_fields__)
    return (*cell, row["cpu"], tuple(row["flags"]), row["runtime"], row["set"])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mechanisms", nargs="+", choices=MECHANISM_NAMES, default=MECHANISM_NAMES)
    parser.add_argument("--resolutions", nargs="+", type=int, default=[64, 224, 512])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "int8"])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS[:-1]))
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="time of a cell's rounds")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen part of the table, each cell in a process of its own."""
    chosen = parse(arguments)
    if chosen.cell:
        rows = measure(Cell(**json.loads(chosen.cell)), chosen.sets, chosen.seconds)
        print(json.dumps(rows))
        return
    cells = (chosen.mechanisms, chosen.resolutions, chosen.batches, chosen.precisions)
    for of_cell in product(*cells):
        cell = Cell(*of_cell, chosen.depth, chosen.threads)
        command = [sys.executable, __file__, "--cell", json.dumps(asdict(cell))]
        command += ["--seconds", str(chosen.seconds), "--sets", *chosen.sets]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        new = json.loads(done.stdout.splitlines()[-1])  # libraries may print earlier lines
        result_rows.add(chosen.output, new, key)
        for row in new:
            said = row.get("reason") or f"{row['p50_ms']:.1f} ms, {row['ratio']:.2f}x of none"
            print(*of_cell, row["runtime"], row["set"], said, file=sys.stderr)


if __name__ == "__main__":
    main()
