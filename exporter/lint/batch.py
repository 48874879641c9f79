"""Rules on the batch: its size stays free, and no clip sees another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from exporter.graph.view import PROBE_BATCH, GraphView, Shape, attribute, operand
from exporter.lint.location import Spot, at_node, at_value, named_in
from exporter.lint.rule import rule
from model.words import listed

REDUCTIONS = {
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
}
# Operators along one axis, and from one axis to the last: the default of their attribute `axis`.
_ALONG_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "ArgMax": 0, "ArgMin": 0, "TopK": -1}
_FROM_AXIS = {"LayerNormalization": -1, "RMSNormalization": -1}
# Before opset 13 these took all axes from `axis` on for one.
_FLATTENED_BEFORE_13 = {"Softmax", "LogSoftmax", "Hardmax"}
_MIXING = {*REDUCTIONS, *_ALONG_AXIS, *_FROM_AXIS, "BatchNormalization", "DynamicQuantizeLinear"}
_SHAPE_READERS = {"Shape", "Size"}


@rule(
    "baked-batch",
    severity="error",
    remedy="export with a batch of 2 or more, and take sizes from x.shape within forward",
)
def baked_batch(view: GraphView) -> Iterator[Spot]:
    """The batch is free at the input, but fixed within the graph.

    The graph runs at the batch it was exported with and fails, or gives wrong shapes, at any
    other. Usual causes are a `reshape` or `expand` to a number that was read in Python, and an
    export at batch 1, which PyTorch treats as a constant.
    """
    if view.batch is None or isinstance(view.batch[0], int):
        return
    found = list(_baked_reshapes(view))
    yield from found
    complaint = view.contradiction_at_probe
    if not found and complaint and not view.contradiction:
        nodes = named_in(view, complaint)
        what = "takes no batch but the one it was exported with"
        yield Spot(nodes[0].name if nodes else "the graph", f"{what}: {complaint}", nodes)
    elif not found:
        yield from _baked_outputs(view)


@rule(
    "batch-coupled",
    severity="warning",
    remedy="reduce over the axes of one clip alone: its result depends on the clips beside it",
)
def batch_coupled(view: GraphView) -> Iterator[Spot]:
    """A reduction or normalisation runs over the batch.

    The result of a clip then depends on the clips that are computed with it: a server that forms
    batches gives other answers than a single run. A scale that is computed at run time from the
    whole tensor (`DynamicQuantizeLinear`) is of this kind too.
    """
    if view.batch in (None, (1,)):  # a clip that is alone sees no other
        return
    activations = _activations(view)
    for node in view.standard(_MIXING):
        name = operand(node)
        shape = _shape_of(view, name)
        if name not in activations or shape is None:
            continue
        axes = _reduced_axes(view, node, len(shape))
        everything = bool(shape) and len(axes) == len(shape)
        # A reshape to fixed sizes hides which axis is the batch, but all axes include it.
        hidden = everything and isinstance(view.batch[0], int)
        if hidden or any(_holds_batch(shape[axis]) for axis in axes):
            over = "all axes" if everything else f"axis {listed(sorted(axes))}"
            yield at_node(node, f"is {node.op_type} over {over}, the batch included")


def _baked_reshapes(view: GraphView) -> Iterator[Spot]:
    """Reshapes to constant sizes that do not follow the batch."""
    for node in view.standard(("Reshape",)):
        if len(node.input) < 2:
            continue
        shape = _shape_of(view, node.input[0], at_probe=True)
        target = view.integers(node.input[1])
        if shape is None or target is None or not any(map(_holds_batch, shape)):
            continue
        wanted: list[int | str | None] = [*target]
        if not attribute(node, "allowzero", 0):  # then 0 copies the axis
            wanted = [w or s for w, s in zip(target, (*shape, *target), strict=False)]
        fixed = -1 not in wanted and not any(map(_holds_batch, wanted))
        leads = bool(target) and target[0] > 1 and _holds_batch(shape[0])
        if fixed or leads:
            yield at_node(node, f"is Reshape to {target}, whatever the batch")


def _baked_outputs(view: GraphView) -> Iterator[Spot]:
    """Outputs whose shape does not follow the batch."""
    for value in view.model.graph.output:
        shape = _shape_of(view, value.name, at_probe=True)
        if not shape or not all(isinstance(axis, int) for axis in shape):  # a scalar has no batch
            continue
        if not any(map(_holds_batch, shape)):
            yield at_value(view, value.name, f"is of shape {list(shape)}, whatever the batch")


def _holds_batch(axis: int | str | None) -> bool:
    return isinstance(axis, int) and axis > 0 and axis % PROBE_BATCH == 0


def _shape_of(view: GraphView, name: str, *, at_probe: bool = False) -> Shape | None:
    """The shape at the probed batch; without `at_probe`, the declared one if that is unknown."""
    for values in (view.values_at_probe,) if at_probe else (view.values_at_probe, view.values):
        if name in values and values[name].shape is not None:
            return values[name].shape
    return None


def _activations(view: GraphView) -> set[str]:
    """The values that are computed from the content of the inputs, not from their shapes."""
    found = {value.name for value in view.inputs}
    for node in view.nodes:
        if node.op_type not in _SHAPE_READERS and not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def _reduced_axes(view: GraphView, node: onnx.NodeProto, rank: int) -> set[int]:
    """The axes along which a node mixes elements."""
    op = node.op_type
    if op in REDUCTIONS:
        axes = _axes(view, node)
        if axes is None:
            return set()
        unnamed = set() if attribute(node, "noop_with_empty_axes", 0) else set(range(rank))
        return _within(axes, rank) or unnamed
    if op == "DynamicQuantizeLinear" or (
        op == "BatchNormalization" and attribute(node, "training_mode", 0)
    ):
        return set(range(rank)) - ({1} if op == "BatchNormalization" else set())
    if op not in _ALONG_AXIS and op not in _FROM_AXIS:
        return set()
    old = op in _FLATTENED_BEFORE_13 and view.opsets.get("", 13) < 13
    default = 1 if old else (_ALONG_AXIS | _FROM_AXIS)[op]
    first = _within([_integer(attribute(node, "axis", default))], rank)
    return set(range(min(first, default=rank), rank)) if old or op in _FROM_AXIS else first


def _axes(view: GraphView, node: onnx.NodeProto) -> list[int] | None:
    """The axes of a reduction: empty if none are given, `None` if they are computed."""
    given = attribute(node, "axes")
    if isinstance(given, Iterable):
        return [int(axis) for axis in given]
    if len(node.input) < 2 or not node.input[1]:
        return []
    return view.integers(node.input[1])


def _within(axes: Iterable[int], rank: int) -> set[int]:
    return {axis % rank for axis in axes if -rank <= axis < rank}


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0
