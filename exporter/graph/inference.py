"""ONNX's own inference of types and shapes, and its checker, for graphs of any origin."""

from __future__ import annotations

import onnx

_MOST_FOLLOWED = 2**20  # numbers of all lists; shapes are a few for each node


def infer(model: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """Infer types and shapes; strictly, every fault of the graph raises.

    Where nodes make lists, a second inference follows their content, because a list may be a shape.
    It holds every number of a list as an object, so that the content of long ones is not followed.
    """
    checks = {"check_type": strict, "strict_mode": strict}
    plain = onnx.shape_inference.infer_shapes(model, **checks)
    if not _has_lists_to_follow(plain):
        return plain
    return onnx.shape_inference.infer_shapes(model, **checks, data_prop=True)


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


def _has_lists_to_follow(inferred: onnx.ModelProto) -> bool:
    """Whether nodes make lists, and all lists are short; a branch or a function may make some."""
    graph = inferred.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
    lists = {name: dims[0].dim_value for name, dims in shapes.items() if len(dims) == 1}
    made = [lists[name] for node in graph.node for name in node.output if name in lists]
    entries = (entry for node in graph.node for entry in node.attribute)
    hidden = inferred.functions or any(entry.HasField("g") or entry.graphs for entry in entries)
    return bool(made or hidden) and max(sum(made), *lists.values(), 0) <= _MOST_FOLLOWED
