"""A graph of any precision -> the same graph with all real numbers in float64, without rounding.

Tensors and casts become float64. The rounding of activations to 8 bits becomes its scaling alone,
which is the identity where both ends have the same scale. The integers of stored weights stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.weights import FLOATS, along_axis

# Before opset 20 a graph writes Gelu as its equation; these constants are rounded there.
OF_GELU = (math.sqrt(2), math.sqrt(0.5), math.sqrt(2 / math.pi), 0.044715)


def raise_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph that computes in float64; inputs of integers keep their type."""
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    graph = raised.graph
    arrays = {weight.name: weight for weight in model.graph.initializer}
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type in FLOATS:
            kind.elem_type = TensorProto.DOUBLE
    for weight in graph.initializer:
        if weight.data_type in FLOATS:
            weight.CopyFrom(_as_double(weight))
    nodes = [made for node in graph.node for made in _raise_node(node, graph, arrays)]
    del graph.node[:]
    graph.node.extend(nodes)
    return raised


def _raise_node(
    node: onnx.NodeProto, graph: onnx.GraphProto, arrays: dict[str, TensorProto]
) -> Iterator[onnx.NodeProto]:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _scale(node, graph, arrays)
        return
    for entry in node.attribute:
        if node.op_type == "Cast" and entry.name == "to" and entry.i in FLOATS:
            entry.i = TensorProto.DOUBLE
        if entry.type == onnx.AttributeProto.TENSOR and entry.t.data_type in FLOATS:
            entry.t.CopyFrom(_as_double(entry.t))
        if node.op_type == "Constant" and entry.name in ("value_float", "value_floats"):
            values = entry.f if entry.name == "value_float" else list(entry.floats)
            tensor = numpy_helper.from_array(np.asarray(values, np.float64))
            entry.CopyFrom(helper.make_attribute("value", tensor))
    yield node


def _scale(
    node: onnx.NodeProto, graph: onnx.GraphProto, arrays: dict[str, TensorProto]
) -> Iterator[onnx.NodeProto]:
    """Write Q as `x / s + z` and DQ as `(q - z) s`."""
    source, end = node.input[0], node.output[0]
    levels = arrays.get(source)
    rank = len(levels.dims) if levels is not None else 0
    if levels is not None and levels.data_type not in FLOATS:
        values = numpy_helper.to_array(levels).astype(np.float64)
        source = _add(graph, f"{end}_levels", values)
    has_zero = len(node.input) > 2 and node.input[2]
    step = _add(graph, f"{end}_step", along_axis(node, 1, arrays, rank))
    zero = _add(
        graph, f"{end}_zero", along_axis(node, 2, arrays, rank) if has_zero else np.zeros(())
    )
    if node.op_type == "QuantizeLinear":
        yield helper.make_node("Div", [source, step], [f"{end}_divided"])
        yield helper.make_node("Add", [f"{end}_divided", zero], [end])
    else:
        yield helper.make_node("Sub", [source, zero], [f"{end}_centred"])
        yield helper.make_node("Mul", [f"{end}_centred", step], [end])


def _add(graph: onnx.GraphProto, name: str, array: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(array.astype(np.float64), name))
    return name


def _as_double(tensor: TensorProto) -> TensorProto:
    array = numpy_helper.to_array(tensor)
    exact = array.astype(np.float64)
    if array.size == 1:
        for number in OF_GELU:
            if array.item() == np.float64(number).astype(array.dtype).item():
                exact = np.full(array.shape, number)
    return numpy_helper.from_array(exact, tensor.name)
