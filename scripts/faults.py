"""Plant faults in model.onnx, and see which judge kills them.

    python scripts/faults.py                      a table of every fault for two attention types
    python scripts/faults.py --attn regular       one attention type

Each fault changes a small proven export and mends its hash in the manifest, so only a comparison of
logits can find it. Two judges see it: that of `export`, which computes the truth with torch, and
`verify`, which reads reference.npz. The exit code is 1 if `verify` lets
a fault live that `export` kills. A fault that both let live is smaller than rounding.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter import ExportSpec
from exporter.files.manifest import GRAPH, read_manifest, sha256
from exporter.files.staging import MANIFEST
from exporter.inputs.clips import gather_inputs
from exporter.load import load_exported
from exporter.machine import environment
from exporter.pipeline import export
from exporter.proof.prove import make_references
from exporter.proof.runtimes import judge_runtimes
from exporter.results import overall_verdict
from exporter.run.stages import Stage, no_progress
from exporter.target.runtimes import open_runtimes
from exporter.target.verify import verify

SMALL = {"depth": 2, "dim": 32, "dim_head": 16, "frames": 3, "res": (32, 48), "num_classes": 5}
Change = Callable[[onnx.GraphProto], None]


@dataclass(frozen=True)
class Outcome:
    """One fault, and the verdict of both judges."""

    fault: str
    by_export: str
    by_verify: str


# --- where faults go


def weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """List the weights of products in the order in which they are used."""
    known = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) > 1}
    products = (node for node in graph.node if node.op_type in ("MatMul", "Conv", "Gemm"))
    used = dict.fromkeys(name for node in products for name in node.input if name in known)
    return [known[name] for name in used]


def nodes(graph: onnx.GraphProto, op: str) -> list[onnx.NodeProto]:
    """List the nodes of one operator."""
    return [node for node in graph.node if node.op_type == op]


def residuals(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """List the sums of two computed values."""
    constants = {tensor.name for tensor in graph.initializer}
    return [node for node in nodes(graph, "Add") if not constants & set(node.input)]


# --- what is changed


def edit_weight(graph: onnx.GraphProto, place: float, edit: Callable[[np.ndarray], None]) -> None:
    """Change a weight in place; `place` is 0 for the first one and 1 for the last."""
    found = weights(graph)
    tensor = found[round(place * (len(found) - 1))]
    array = numpy_helper.to_array(tensor).copy()
    edit(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def scale(factor: float, array: np.ndarray) -> None:
    """Multiply everything."""
    array *= np.float32(factor)


def zero_row(array: np.ndarray) -> None:
    """Set the first row to zero."""
    array[0] = 0


def swap_rows(array: np.ndarray) -> None:
    """Exchange the first row and the last."""
    array[[0, -1]] = array[[-1, 0]]


def swap_heads(array: np.ndarray) -> None:
    """Exchange the two halves of the columns, which are heads."""
    array[:] = np.roll(array, array.shape[-1] // 2, axis=-1)


def flip_one_sign(array: np.ndarray) -> None:
    """Flip the sign of the largest number."""
    array.flat[np.abs(array).argmax()] *= -1


def add_noise(array: np.ndarray) -> None:
    """Add noise of a thousandth of the weight."""
    noise = np.random.default_rng(0).standard_normal(array.shape)
    array += (1e-3 * array.std() * noise).astype(np.float32)


def round_half(array: np.ndarray) -> None:
    """Round to half precision."""
    array[:] = array.astype(np.float16)


def edit_bias(graph: onnx.GraphProto) -> None:
    """Add a hundredth to the bias of the head."""
    name = nodes(graph, "Gemm")[-1].input[2]
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 0.01, name))


def set_attribute(graph: onnx.GraphProto, op: str, place: int, name: str, value: object) -> None:
    """Give an attribute of a node another value."""
    node = nodes(graph, op)[place]
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def drop_residual(graph: onnx.GraphProto, place: int, kept: int) -> None:
    """Let a sum give one of its two terms."""
    node = residuals(graph)[place]
    node.op_type = "Identity"
    del node.input[1 - kept]


def other_operator(graph: onnx.GraphProto, op: str, new: str) -> None:
    """Put another operator in place of the last one of a kind."""
    nodes(graph, op)[-1].op_type = new


def after(
    graph: onnx.GraphProto, node: onnx.NodeProto, *steps: tuple[str, Mapping[str, int]]
) -> None:
    """Insert operators of one input after the first output of a node."""
    place = list(graph.node).index(node)
    name = node.output[0]
    node.output[0] = f"{name}.planted"
    for i, (op, attributes) in enumerate(steps):
        end = name if i == len(steps) - 1 else f"{name}.planted.{i}"
        start = f"{name}.planted" if i == 0 else f"{name}.planted.{i - 1}"
        node_made = helper.make_node(op, [start], [end])
        node_made.attribute.extend(helper.make_attribute(*pair) for pair in attributes.items())
        graph.node.insert(place + 1 + i, node_made)


def reorder_input(graph: onnx.GraphProto, axis: int, *, swap: bool = False) -> None:
    """Reverse an axis of the clip, or exchange its first two entries."""
    size = graph.input[0].type.tensor_type.shape.dim[axis].dim_value
    order = [1, 0, *range(2, size)] if swap else [*range(size)][::-1]
    graph.initializer.append(numpy_helper.from_array(np.array(order), "planted"))
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["reordered" if given == name else given for given in node.input]
    graph.node.insert(0, helper.make_node("Gather", [name, "planted"], ["reordered"], axis=axis))


def through_half(graph: onnx.GraphProto) -> None:
    """Round the logits to half precision."""
    half, full = {"to": TensorProto.FLOAT16}, {"to": TensorProto.FLOAT}
    after(graph, graph.node[-1], ("Cast", half), ("Cast", full))


def rectify(graph: onnx.GraphProto) -> None:
    """Cut negative tokens off."""
    after(graph, residuals(graph)[0], ("Relu", {}))


def roll_table(graph: onnx.GraphProto) -> None:
    """Move a table of rotations by one position."""
    used = {name for node in nodes(graph, "Mul") for name in node.input}
    tables = [t for t in graph.initializer if t.name in used and max(t.dims, default=0) > 1]
    moved = np.roll(numpy_helper.to_array(tables[0]), 1, axis=0)
    if tables[0].dims[0] == 1:
        moved = np.roll(numpy_helper.to_array(tables[0]), 1, axis=-1)
    tables[0].CopyFrom(numpy_helper.from_array(moved, tables[0].name))


def _faults() -> Iterator[tuple[str, Change]]:
    for word, place in (("first", 0.0), ("middle", 0.5), ("last", 1.0)):
        yield f"zero row, {word} weight", partial(edit_weight, place=place, edit=zero_row)
        yield (
            f"scale 1.001, {word} weight",
            partial(edit_weight, place=place, edit=partial(scale, 1.001)),
        )
        yield f"swapped rows, {word} weight", partial(edit_weight, place=place, edit=swap_rows)
        yield f"one sign, {word} weight", partial(edit_weight, place=place, edit=flip_one_sign)
    for word, place in (("early", 0.2), ("late", 0.8)):
        yield f"swapped heads, {word} weight", partial(edit_weight, place=place, edit=swap_heads)
        yield f"noise, {word} weight", partial(edit_weight, place=place, edit=add_noise)
        yield f"half precision, {word} weight", partial(edit_weight, place=place, edit=round_half)
    least = partial(scale, 1 + 2.0**-23)  # one unit in the last place
    yield "scale 1 + 2**-23, last weight", partial(edit_weight, place=1.0, edit=least)
    yield "bias of the head", edit_bias
    for word, place in (("first", 0), ("last", -1)):
        for value in (1e-3, 1e-6):
            how = partial(set_attribute, op="LayerNormalization", place=place, name="epsilon")
            yield f"epsilon {value:g}, {word} norm", partial(how, value=value)
        yield (
            f"other axis, {word} softmax",
            partial(set_attribute, op="Softmax", place=place, name="axis", value=-2),
        )
        for kept in (0, 1):
            yield (
                f"dropped term {kept}, {word} residual",
                partial(drop_residual, place=place, kept=kept),
            )
    yield (
        "tanh in Gelu",
        partial(set_attribute, op="Gelu", place=-1, name="approximate", value="tanh"),
    )
    yield "largest frame, not the mean", partial(other_operator, op="ReduceMean", new="ReduceMax")
    yield "frames reversed", partial(reorder_input, axis=1)
    yield "frames swapped", partial(reorder_input, axis=1, swap=True)
    yield "channels reversed", partial(reorder_input, axis=2)
    yield "upside down", partial(reorder_input, axis=3)
    yield "mirrored", partial(reorder_input, axis=4)
    yield "logits in half precision", through_half
    yield "negative tokens cut off", rectify
    yield "rotation by another position", roll_table


FAULTS: dict[str, Change] = dict(_faults())


def plant(directory: Path, change: Change) -> None:
    """Change the graph of an export, and mend its hash in the manifest."""
    path = directory / GRAPH
    model = onnx.load(path)
    before = model.SerializeToString()
    change(model.graph)
    if model.SerializeToString() == before:
        raise ValueError("the fault changes nothing")
    onnx.save(model, path)
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][GRAPH] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (directory / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def judge(directory: Path) -> Iterator[Outcome]:
    """Plant each fault in a copy of an export, and ask both judges."""
    by_export = judge_of_export(directory)
    for name, change in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(directory, Path(folder) / "copy"))
            plant(copy, change)
            yield Outcome(name, by_export(copy), overall_verdict(verify(copy).parity))


def judge_of_export(directory: Path) -> Callable[[Path], str]:
    """Compute the truth of an export with torch, once; return what judges a copy by it."""
    manifest = read_manifest(directory)
    spec, model = load_exported(manifest)
    inputs = gather_inputs((), model.config, model.preprocessing)
    stage = Stage("parity", no_progress)

    def verdict(copy: Path) -> str:
        with ExitStack() as resources:
            opened = open_runtimes(copy, manifest, resources, for_proof=True)
            parity = judge_runtimes(references, inputs, opened, spec.run_batch, None, stage)
        return overall_verdict(parity)

    with ExitStack() as resources:
        opened = open_runtimes(directory, manifest, resources, for_proof=True)
        references = make_references(spec, model, inputs, None, opened, stage)
    return verdict


def missed(outcomes: list[Outcome]) -> list[str]:
    """List the faults that `export` kills and `verify` lets live."""
    return [o.fault for o in outcomes if o.by_export != "pass" and o.by_verify == "pass"]


def make(attn: str, folder: Path) -> Path:
    """Export a small model."""
    spec = ExportSpec(attn=attn, engine="none", bench_seconds=0.0, **SMALL)
    return export(spec, folder / attn).directory


def main() -> int:
    """Print both verdicts of every fault; return 1 if `verify` misses one that `export` kills."""
    parser = argparse.ArgumentParser(description="Plant faults in a small export.")
    parser.add_argument("--attn", nargs="*", default=["fastformer", "regular"])
    environment.available_flavours = cache(environment.available_flavours)  # a process each
    wrong: list[str] = []
    for attn in parser.parse_args().attn:
        with tempfile.TemporaryDirectory() as folder:
            outcomes = list(judge(make(attn, Path(folder))))
        for outcome in outcomes:
            print(f"{attn:<11} {outcome.fault:<36} {outcome.by_export:<6} {outcome.by_verify}")
        killed = sum(outcome.by_export != "pass" for outcome in outcomes)
        lost = missed(outcomes)
        wrong += lost
        print(f"{attn}: {len(outcomes)} faults, export kills {killed}, verify misses {lost or 0}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
