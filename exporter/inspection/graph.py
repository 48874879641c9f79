"""Facts about a graph: inputs, operators, types, weights by module, cost, what a runtime fuses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from exporter.errors import OnnxError, RuntimeFailure
from exporter.graph.cost import content_bytes, count_cost
from exporter.graph.view import (
    STANDARD,
    GraphTensor,
    GraphView,
    attribute,
    dtype_name,
    graph_tensor,
    operand,
)
from exporter.runners.onnxruntime import write_optimised

# Operators that ONNX Runtime puts in the place of attention that is written out.
_FUSED_ATTENTION = {
    "Attention",
    "DecoderMaskedMultiHeadAttention",
    "GroupQueryAttention",
    "MultiHeadAttention",
    "PackedAttention",
    "PackedMultiHeadAttention",
    "QAttention",
}


@dataclass(frozen=True)
class ModuleFacts:
    """Nodes and weights of one module, without those of its submodules.

    `path` is empty for the model itself and for weights that several modules share, and `None` for
    nodes and weights whose module is not known.
    """

    path: str | None
    nodes: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class FusedOp:
    """An operator that a runtime put in the place of several: how often, and in which modules."""

    op: str
    count: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Fusion:
    """What a runtime made of the graph, or the `reason` why that is not known.

    `attention` maps each module with a softmax to its fused operator; the operator is empty where
    the attention stays written out.
    """

    runtime: str
    nodes: int | None = None
    fused: tuple[FusedOp, ...] = ()
    attention: Mapping[str, str] | None = None
    reason: str = ""


@dataclass(frozen=True)
class GraphFacts:
    """All facts about a graph; `cost` is of one run at `batch`, or the reason why it is unknown.

    `parameters` counts the numbers in weights, without int64 weights: those are shapes and axes.
    """

    file: str
    bytes: int
    producer: str
    opsets: Mapping[str, int]
    ir_version: int
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    nodes: int
    ops: Mapping[str, int]
    values: Mapping[str, int]
    weights: Mapping[str, int]
    casts: Mapping[str, int]
    parameters: int
    weight_bytes: int
    missing_weights: int
    modules: tuple[ModuleFacts, ...]
    batch: int
    cost: Mapping[str, Any]
    fusion: Fusion


def inspect_graph(view: GraphView, path: Path) -> GraphFacts:
    """Collect the facts about a graph that was read from a file."""
    batch = next((axis for axis in view.batch or () if isinstance(axis, int)), 1)
    modules = _by_module(view)
    return GraphFacts(
        file=path.name,
        bytes=path.stat().st_size,
        producer=f"{view.model.producer_name} {view.model.producer_version}".strip(),
        opsets=dict(view.opsets),
        ir_version=view.model.ir_version,
        inputs=tuple(map(graph_tensor, view.inputs)),
        outputs=tuple(map(graph_tensor, view.model.graph.output)),
        nodes=len(view.nodes),
        ops=dict(Counter(map(_op_name, view.nodes)).most_common()),
        values=_values_by_type(view),
        weights=_weights_by_type(view),
        casts=_casts(view),
        parameters=sum(module.parameters for module in modules),
        weight_bytes=sum(module.bytes for module in modules),
        missing_weights=len(view.missing),
        modules=modules,
        batch=batch,
        cost=_cost(view, batch),
        fusion=_fusion(view, path),
    )


def _op_name(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"


def _values_by_type(view: GraphView) -> dict[str, int]:
    """The number of values of each type that nodes make."""
    made = (name for node in view.nodes for name in node.output if name)
    return _counted(dtype_name(view.kind(name)) for name in made)


def _weights_by_type(view: GraphView) -> dict[str, int]:
    """The bytes of the weights of each type."""
    found: Counter[str] = Counter()
    for weight in _stored(view).values():
        found[dtype_name(weight.data_type)] += _size(weight)
    return dict(found.most_common())


def _casts(view: GraphView) -> dict[str, int]:
    nodes = (node for node in view.nodes if node.op_type == "Cast")
    types = ((view.kind(operand(node)), attribute(node, "to")) for node in nodes)
    return _counted(f"{dtype_name(source)} to {dtype_name(to)}" for source, to in types)


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _by_module(view: GraphView) -> tuple[ModuleFacts, ...]:
    """The modules in the order of their last nodes; those without nodes follow."""
    nodes = Counter(view.module(node) for node in reversed(view.nodes))
    stored = _stored(view)
    owners = {name: _owner(view, name) for name in stored}
    parameters: Counter[str | None] = Counter()
    size: Counter[str | None] = Counter()
    for name, weight in stored.items():
        size[owners[name]] += _size(weight)
        if weight.data_type != onnx.TensorProto.INT64:
            parameters[owners[name]] += math.prod(weight.dims)
    paths = dict.fromkeys((*reversed(nodes), *owners.values()))
    return tuple(ModuleFacts(path, nodes[path], parameters[path], size[path]) for path in paths)


def _stored(view: GraphView) -> dict[str, onnx.TensorProto]:
    """All weights, those in nodes `Constant` too."""
    return {**view.weights, **view.constants}


def _owner(view: GraphView, weight: str) -> str | None:
    """The innermost module around all readers of a weight; else the path in its name."""
    readers = (view.module(reader.node) for reader in view.readers.get(weight, ()))
    paths = [path.split(".") for path in readers if path is not None]
    if paths:
        same = takewhile(lambda steps: len(set(steps)) == 1, zip(*paths, strict=False))
        return ".".join(steps[0] for steps in same)
    path, dot, _ = weight.rpartition(".")
    return path if dot and ":" not in weight else None


def _size(weight: onnx.TensorProto) -> int:
    try:
        return content_bytes(weight.data_type, weight.dims)
    except KeyError:  # this version of onnx does not know the type
        return 0


def _cost(view: GraphView, batch: int) -> dict[str, Any]:
    if view.contradiction:
        return {"reason": f"it is not valid ONNX: {' '.join(view.contradiction.split())[:300]}"}
    try:
        return asdict(count_cost(view.model, batch))
    except OnnxError as error:
        return {"reason": str(error)}


def _fusion(view: GraphView, path: Path) -> Fusion:
    try:
        after = _optimised(path)
    except RuntimeFailure as error:
        return Fusion("onnxruntime", reason=str(error))
    modules: dict[str, list[str | None]] = {}
    for node in after.nodes:
        if node.domain not in STANDARD:
            modules.setdefault(_op_name(node), []).append(_origin(view, after, node))
    fused = (
        FusedOp(op, len(found), tuple(dict.fromkeys(m for m in found if m is not None)))
        for op, found in modules.items()
    )
    attention = {
        module: ""
        for node in view.nodes
        if node.op_type == "Softmax" and (module := view.module(node)) is not None
    }
    for node in after.nodes:
        module = _origin(view, after, node)
        if node.op_type in _FUSED_ATTENTION and module in attention:
            attention[module] = _op_name(node)
    by_count = sorted(fused, key=lambda entry: -entry.count)
    return Fusion("onnxruntime", len(after.nodes), tuple(by_count), attention)


def _optimised(path: Path) -> GraphView:
    """The graph that ONNX Runtime runs, without its large weights."""
    with TemporaryDirectory(prefix="tsformer-") as folder:
        out = Path(folder) / "optimised.onnx"
        write_optimised(path, out)
        return GraphView(onnx.load(out, load_external_data=False))


def _origin(view: GraphView, after: GraphView, node: onnx.NodeProto) -> str | None:
    """The module of a fused node: its result, or that of a cast that follows, keeps its name."""
    behind = (reader.node for name in node.output for reader in after.readers.get(name, ()))
    names = (name for made in (node, *behind) for name in made.output)
    makers = (view.producers[name] for name in names if name in view.producers)
    return next((view.module(maker) for maker in makers), None)
