"""Rules on the range of float16: its largest number is 65504, its smallest normal one 6.1e-5."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from exporter.graph.view import GraphView, attribute, operand
from exporter.lint.location import Spot, at_node, at_value
from exporter.lint.rule import rule

FLOAT16_MAX = float(np.finfo(np.float16).max)
_FLOAT16_NORMAL = float(np.finfo(np.float16).smallest_normal)
_MANY_SUBNORMAL = 0.5  # share of the numbers that are not 0; any weight has some close to 0
# Exponentials, sums of many terms and powers leave the range first.
_WIDE_RANGE = {
    "CumSum",
    "Exp",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LogSoftmax",
    "Pow",
    "RMSNormalization",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Softmax",
}


@rule("float16-not-finite", severity="warning", remedy="keep this weight in float32, or scale it")
def float16_not_finite(view: GraphView) -> Iterator[Spot]:
    """A float16 weight has infinity or NaN in it.

    A number above 65504 became infinity when the weight was converted to float16, and spreads NaN
    from there. Negative infinity is not reported: masks are written with it.
    """
    for name, array in _floats(view, TensorProto.FLOAT16):
        bad = np.isposinf(array) | np.isnan(array)
        if bad.any():
            yield at_value(view, name, f"holds infinity or NaN in {bad.sum()} of {bad.size} places")


@rule(
    "float16-overflow",
    severity="warning",
    remedy="keep its module in float32: float16 ends at 65504",
)
def float16_overflow(view: GraphView) -> Iterator[Spot]:
    """A float32 weight is cast to float16 in the graph, and has numbers above 65504.

    They become infinity in every run.
    """
    for node in view.standard(("Cast",)):
        if attribute(node, "to") == TensorProto.FLOAT16:
            array = view.array(operand(node))
            if array is not None and array.dtype.kind == "f" and array.size:
                largest = float(np.nanmax(np.abs(array), initial=0.0, where=np.isfinite(array)))
                if largest > FLOAT16_MAX:
                    yield at_node(node, f"is Cast of {operand(node)}, up to {largest:.3g}")


@rule(
    "float16-subnormal",
    severity="warning",
    remedy="keep this weight in float32 or bfloat16, or scale it",
)
def float16_subnormal(view: GraphView) -> Iterator[Spot]:
    """Most numbers of a float16 weight are below 6.1e-5, where float16 loses precision.

    Such numbers are subnormal: they have fewer than the 11 significant bits of float16, and some
    devices take them for 0.
    """
    for name, array in _floats(view, TensorProto.FLOAT16):
        small = (array != 0) & (np.abs(array) < _FLOAT16_NORMAL)
        if small.any() and small.sum() > _MANY_SUBNORMAL * np.count_nonzero(array):
            share = small.sum() / small.size
            yield at_value(view, name, f"is subnormal in {share:.0%} of {small.size} places")


@rule(
    "float16-range",
    severity="warning",
    remedy="keep it in float32 between two casts, as autocast does",
)
def float16_range(view: GraphView) -> Iterator[Spot]:
    """An exponential, a sum of many terms, a norm or a power is computed in float16.

    These operators leave the range of float16 first: a sum of squares is above 65504 where each
    term is above 256. The result is infinity or NaN on some inputs, and on others nothing is
    wrong, so that a test on a few clips may not find it.
    """
    for node in view.standard(_WIDE_RANGE):
        if view.kind(operand(node)) == TensorProto.FLOAT16:
            yield at_node(node, f"is {node.op_type} in float16")


def _floats(view: GraphView, kind: int) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in view.constants.items():
        if tensor.data_type == kind and (array := view.array(name)) is not None:
            yield name, array
