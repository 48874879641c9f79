"""Whether the 8 bits of an int8 graph span the activations of the calibration clips.

The tolerance of int8 has room for a scale that is half of the right one. And structure takes
rounding away, and the scale with it. So the scales are compared with the activations themselves. A
scale that is too large only rounds more: that is judged by the floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporter.proof.rows import count_clips, in_batches
from exporter.runners.base import Arrays
from exporter.runners.onnxruntime import OnnxRuntimeRunner

_CLIPS = 8  # of the calibration, evenly spaced: their activations reach nearly as far as all
# A part of the span. Before a product, rounding moves the largest activation by a few percent.
_BEYOND = 0.25


class _Span(NamedTuple):
    """The values that 8 bits hold, zero among them; name and type of their scale."""

    scale: str
    dtype: int
    low: float
    high: float


def wrong_scales(graph: onnx.ModelProto, calibration: Arrays) -> tuple[str, ...]:
    """Name the scales of activations that clip them.

    Args:
        graph: An int8 graph, with `QuantizeLinear` before its products.
        calibration: The calibration clips by the name of their input, `(n, ...)`.
    """
    spans = _spans(graph)
    if not spans:
        return ()
    observed = _observe(graph, spans, calibration)
    return tuple(
        dict.fromkeys(span.scale for name, span in spans.items() if _clips(span, *observed[name]))
    )


def _clips(span: _Span, low: float, high: float) -> bool:
    room = _BEYOND * (span.high - span.low)
    return low < span.low - room or high > span.high + room


def _spans(graph: onnx.ModelProto) -> dict[str, _Span]:
    """Find the span of each value that is rounded."""
    weights = {one.name: one for one in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in weights:
            scale, zero = (weights[name] for name in node.input[1:3])
            step, middle = (numpy_helper.to_array(one) for one in (scale, zero))
            levels = np.iinfo(middle.dtype)
            low, high = (float(step) * (end - int(middle)) for end in (levels.min, levels.max))
            found[node.input[0]] = _Span(scale.name, scale.data_type, low, high)
    return found


def _observe(
    graph: onnx.ModelProto, spans: Mapping[str, _Span], calibration: Arrays
) -> dict[str, tuple[float, float]]:
    """Run clips, and return the smallest and the largest value of each rounded activation."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.graph.output[:]
    for place, (name, span) in enumerate(spans.items()):
        for op in ("ReduceMin", "ReduceMax"):
            out = f"{op}_{place}"
            model.graph.node.append(helper.make_node(op, [name], [out], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(out, span.dtype, []))
    count = count_clips(calibration)
    places = np.unique(np.linspace(0, count - 1, min(_CLIPS, count)).astype(int)).tolist()
    batch = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1  # 0: a free batch
    with OnnxRuntimeRunner(model) as runner:
        runs = [
            runner.run({name: array[chosen] for name, array in calibration.items()})
            for chosen in in_batches(places, batch)
        ]
    return {
        name: (
            min(float(run[f"ReduceMin_{place}"]) for run in runs),
            max(float(run[f"ReduceMax_{place}"]) for run in runs),
        )
        for place, name in enumerate(spans)
    }
