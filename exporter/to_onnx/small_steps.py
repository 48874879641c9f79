"""Steps of small weights: what ONNX Runtime's quantiser makes of fp16 weights, set right.

The quantiser takes 1 for a step that is no normal number of the type of a weight. In fp16 all
weights of an output channel whose largest is below 0.008 would be 0. The patch embedding of a graph
that takes pixels has only such channels.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from exporter.graph.weights import LEAST_STEP, along_axis


def set_small_steps(quantised: onnx.GraphProto, graph: onnx.GraphProto) -> None:
    """Give each channel of small fp16 weights its own step, in place.

    Args:
        quantised: What the quantiser made of `graph`.
        graph: The graph with the fp16 weights.
    """
    weights = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT16}
    arrays = {one.name: one for one in quantised.initializer}
    for node in quantised.node:
        name = node.input[0].removesuffix("_quantized") if node.input else ""
        if node.op_type != "DequantizeLinear" or node.input[0] not in arrays or name not in weights:
            continue
        weight = numpy_helper.to_array(weights[name]).astype(np.float64)
        steps = along_axis(node, 1, arrays, weight.ndim)
        others = tuple(axis for axis, size in enumerate(steps.shape) if size == 1)
        largest = np.abs(weight).max(others or None, keepdims=True)
        small = (steps == 1) & (largest > 0) & (largest < 1)
        steps = np.where(small, np.ceil(largest / 127 / LEAST_STEP) * LEAST_STEP, steps)
        held = numpy_helper.to_array(arrays[node.input[0]])
        levels = np.where(small, np.round(weight / steps), held).astype(np.int8)
        shape = arrays[node.input[1]].dims
        made = levels, steps.reshape(shape).astype(np.float16)
        for part, array in zip(node.input, made, strict=False):
            arrays[part].CopyFrom(numpy_helper.from_array(array, part))
