"""Rules on the range of float16: its largest number is 65504, its smallest normal one 6.1e-5."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from exporter.graph.view import GraphView, attribute, operand
from exporter.lint.spot import Spot, at_node, at_value

FLOAT16_MAX = float(np.finfo(np.float16).max)
_FLOAT16_NORMAL = float(np.finfo(np.float16).smallest_normal)
_MANY_SUBNORMAL = 0.5  # share of what is not zero: some lie close to zero in any weight
# Exponentials, sums of many terms and powers: what leaves the range first.
_WIDE_RANGE = {
    *("Exp", "Softmax", "LogSoftmax", "ReduceLogSumExp", "LayerNormalization", "RMSNormalization"),
    *("InstanceNormalization", "GroupNormalization", "ReduceSum", "ReduceMean", "ReduceSumSquare"),
    *("ReduceL1", "ReduceL2", "ReduceProd", "CumSum", "Pow"),
}


def float16_not_finite(view: GraphView) -> Iterator[Spot]:
    """A float16 constant with infinity or NaN; -inf alone is how masks are written."""
    for name, array in _floats(view, TensorProto.FLOAT16):
        bad = np.isposinf(array) | np.isnan(array)
        if bad.any():
            yield at_value(view, name, f"holds infinity or NaN in {bad.sum()} of {bad.size} places")


def float16_subnormal(view: GraphView) -> Iterator[Spot]:
    """A float16 constant of which much is too small for its whole precision."""
    for name, array in _floats(view, TensorProto.FLOAT16):
        small = (array != 0) & (np.abs(array) < _FLOAT16_NORMAL)
        if small.any() and small.sum() > _MANY_SUBNORMAL * np.count_nonzero(array):
            share = small.sum() / small.size
            yield at_value(view, name, f"is subnormal in {share:.0%} of {small.size} places")


def float16_overflow(view: GraphView) -> Iterator[Spot]:
    """A constant that is cast to float16 and does not fit it."""
    for node in view.nodes:
        if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT16:
            array = view.array(operand(node))
            if array is not None and array.dtype.kind == "f" and array.size:
                largest = float(np.nanmax(np.abs(array), initial=0.0, where=np.isfinite(array)))
                if largest > FLOAT16_MAX:
                    yield at_node(node, f"is Cast of {operand(node)}, up to {largest:.3g}")


def float16_range(view: GraphView) -> Iterator[Spot]:
    """An operator that sums or exponentiates in float16."""
    for node in view.nodes:
        if node.op_type in _WIDE_RANGE and view.kind(operand(node)) == TensorProto.FLOAT16:
            yield at_node(node, f"is {node.op_type} in float16")


def _floats(view: GraphView, kind: int) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in view.constants.items():
        if tensor.data_type == kind and (array := view.array(name)) is not None:
            yield name, array
