"""Count the kernels of TensorRT-RTX engines for sets of rewrites; no GPU is needed.

    python scripts/gpu/fusion.py --sets all                       search: rules one by one, depth 2
    python scripts/gpu/fusion.py --depth 12 --precisions fp16 bf16
    python scripts/gpu/fusion.py --model base --resolutions 224

Set PYTHONPATH to the project's directory where tsformer is not installed.

A row describes one engine: kernels, attentions that are one kernel, bytes, and seconds of the
build, with the load of the machine before it. A cell is a model, its precision, size and depth.
Its rows differ in the rewrites:

    none       the model as it is traced
    chosen     what `exporter.rewrite.choose` takes for TensorRT
    cpu        the layout of `model.onnx`, for ONNX Runtime on a CPU
    + NAME     chosen, with one more rule
    - NAME     chosen, without one rule

Rows are merged into scripts/results/fusion.json, so that the table can be measured in parts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import result_rows

from exporter.precision import REST_OF_INT8, in_precision
from exporter.rewrite import REWRITES, rewrite
from exporter.rewrite.choose import rewrites_to_skip
from exporter.spec import PRECISIONS, ExportSpec
from exporter.to_engine.build import build_engine
from exporter.to_onnx.export import export_onnx
from exporter.to_onnx.quantize import quantize
from model import FastTimeSformer, TimeSformerViT
from model.classifier import VideoClassifier
from model.config import MECHANISM_NAMES, SCHEME_NAMES

RESULTS = Path(__file__).resolve().parents[1] / "results" / "fusion.json"
RESOLUTIONS = (64, 224, 512)
MODELS = ("small", "base")  # 2 heads and width 128; 12 heads and width 768
SETS = ("none", "chosen", "cpu", "all")


@dataclass(frozen=True)
class Cell:
    """One model in one precision: `depth` blocks, at `res` x `res` pixels."""

    model: str
    attn: str
    scheme: str
    precision: str
    res: int
    depth: int

    def make(self) -> VideoClassifier:
        """Make the model, with random weights."""
        torch.manual_seed(0)
        size, named = (self.res, self.res), {"depth": self.depth}
        if self.model == "base":
            return TimeSformerViT(8, *size, scheme=self.scheme, attn=self.attn, **named).eval()  # type: ignore[arg-type]
        named |= {"attn_mechanism": self.attn, "attn_type": self.scheme}
        return FastTimeSformer(5, 3, *size, num_classes=2, **named).eval()  # type: ignore[arg-type]

    def rules(self, model: VideoClassifier, name: str) -> list[str]:
        """The rewrites of the set of this name, in the order in which they are applied."""
        spec = ExportSpec(precision=self.precision)
        target = "onnxruntime" if name == "cpu" else "tensorrt"
        taken = REWRITES.keys() - rewrites_to_skip(spec, model, target)
        sign, _, rule = name.partition(" ")
        taken = {"none": set(), "+": taken | {rule}, "-": taken - {rule}}.get(sign, taken)
        return [rule for rule in REWRITES if rule in taken]


def names_of_sets(sets: Sequence[str]) -> Iterator[str]:
    """The sets to measure; `all` adds every rule that is one more or one less."""
    if "all" not in sets:
        yield from sets
        return
    yield from ("none", "chosen", "cpu")
    skipped = rewrites_to_skip(
        ExportSpec(), Cell("small", "regular", "joint", "fp32", 64, 1).make(), "tensorrt"
    )
    for rule in REWRITES:
        if not rule.startswith(("cut_", "fold_pixels")):
            yield f"{'+' if rule in skipped else '-'} {rule}"


def measure(cell: Cell, model: VideoClassifier, name: str, folder: Path) -> dict[str, Any]:
    """Build one engine, and describe it."""
    rules, begin = cell.rules(model, name), time.monotonic()
    rewritten = rewrite(model, [rule for rule in REWRITES if rule not in rules])
    graph = write_graph(cell, rewritten, folder)
    traced = time.monotonic() - begin
    spec, load = ExportSpec(precision=cell.precision), os.getloadavg()[0]
    engine = build_engine(
        graph, folder / "model.engine", flavour="rtx", targets=spec.engine_targets
    )
    assert engine.fusion is not None, "TensorRT-RTX listed no layers"
    return {
        **asdict(cell),
        "set": name,
        "rules": rules,
        "kernels": engine.fusion.kernels,
        "attentions": engine.fusion.attentions,
        "fused_attentions": engine.fusion.fused_attentions,
        "engine_bytes": engine.bytes,
        "graph_bytes": graph.stat().st_size,
        "build_seconds": round(engine.seconds, 1),
        "trace_seconds": round(traced, 1),
        "load": round(load, 1),
        "version": f"TensorRT-RTX {engine.version}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_graph(cell: Cell, model: VideoClassifier, folder: Path) -> Path:
    """Write the graph as an export does; the scales of int8 come from noise, and decide nothing."""
    config, int8 = model.config, cell.precision == "int8"
    clip = torch.randn(1, config.frames, config.channels, config.height, config.width)
    lowered = in_precision(model, REST_OF_INT8 if int8 else cell.precision)
    spec = ExportSpec(precision=cell.precision)
    path, quantised = folder / "model.onnx", folder / "int8.onnx"
    export_onnx(lowered, {"video": clip}, path, opset=spec.graph_opset)
    if not int8:
        return path
    quantize(path, quantised, {"video": clip.numpy()}, form="tensorrt")
    return quantised


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies a row."""
    return tuple(row[name] for name in (*Cell.__dataclass_fields__, "set"))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--mechanisms", nargs="+", choices=MECHANISM_NAMES, default=MECHANISM_NAMES)
    parser.add_argument("--schemes", nargs="+", choices=SCHEME_NAMES, default=["divided"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp16"])
    parser.add_argument("--resolutions", nargs="+", type=int, default=RESOLUTIONS)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["none", "chosen"])
    parser.add_argument("--missing", action="store_true", help="leave out rows that are there")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen part of the table."""
    chosen = parse(arguments)
    cells = product(chosen.mechanisms, chosen.schemes, chosen.precisions, chosen.resolutions)
    for attn, scheme, precision, res in cells:
        cell = Cell(chosen.model, attn, scheme, precision, res, chosen.depth)
        model, seen = cell.make(), set()
        for name in names_of_sets(chosen.sets):
            known = {key(row) for row in result_rows.read(chosen.output)}
            rules = tuple(cell.rules(model, name))
            if rules in seen or (chosen.missing and (*asdict(cell).values(), name) in known):
                continue
            seen.add(rules)
            with tempfile.TemporaryDirectory() as folder:
                row = measure(cell, model, name, Path(folder))
            result_rows.add(chosen.output, [row], key)
            print(*key(row), row["kernels"], row["fused_attentions"], file=sys.stderr)


if __name__ == "__main__":
    main()
