"""ONNX's own inference of types and shapes, and its checker, for graphs of any origin."""

from __future__ import annotations

import contextlib

import onnx

_MOST_FOLLOWED = 2**20  # numbers of all lists; shapes are a few for each node


def infer(model: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """Infer types and shapes; strictly, every fault of the graph raises.

    Inference follows the content of lists, because a list may be a shape. It holds every number of
    a list as an object, so that the content of long ones is not followed.
    """
    followed = _count_in_lists(model) <= _MOST_FOLLOWED
    return onnx.shape_inference.infer_shapes(
        model, check_type=strict, strict_mode=strict, data_prop=followed
    )


def refusal(model: onnx.ModelProto) -> str:
    """The error of strict inference; empty if none."""
    try:
        infer(model, strict=True)
    except Exception as error:  # several unrelated classes, as of the checker
        return str(error)
    return ""


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose inputs and outputs have a shape, also an empty one: the checker requires it."""
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    for value in (*shaped.graph.input, *shaped.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return shaped


def _count_in_lists(model: onnx.ModelProto) -> int:
    """Count the numbers in the lists that nodes make, or in the longest list that they read."""
    plain = model
    with contextlib.suppress(Exception):  # then the inference itself says what is wrong
        plain = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in (*plain.graph.input, *plain.graph.output, *plain.graph.value_info)
    }
    lists = {name: dims[0].dim_value for name, dims in shapes.items() if len(dims) == 1}
    made = (lists.get(name, 0) for node in model.graph.node for name in node.output)
    return max(sum(made), *lists.values(), 0)
