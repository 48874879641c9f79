"""Where a fault is planted in a graph, and how its numbers are changed in any precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.view import GraphView, Value
from exporter.graph.weights import real_numbers

PLACES = {"first": 0.0, "middle": 0.5, "last": 1.0}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
Change = Callable[[onnx.GraphProto], None]
Edit = Callable[[np.ndarray], None]


class NotHereError(Exception):
    """A graph has no place for this fault."""


def nodes(graph: onnx.GraphProto, op: str) -> list[onnx.NodeProto]:
    """List the nodes of one operator; there is at least one."""
    return need([node for node in graph.node if node.op_type == op])


def need(found: list[Any]) -> list[Any]:
    """Return a list that is not empty."""
    if not found:
        raise NotHereError
    return found


def weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """List the weights of products in the order in which they are used, stored ones too."""
    known = {t.name: t for t in graph.initializer if len([n for n in t.dims if n > 1]) > 1}
    made = {node.output[0]: node for node in graph.node}

    def find(name: str, steps: int = 3) -> Iterator[str]:
        if name in known:
            yield name
        elif name in made and steps and made[name].op_type in ("Cast", "Mul", "DequantizeLinear"):
            yield from (n for given in made[name].input for n in find(given, steps - 1))

    products = (node for node in graph.node if node.op_type in ("MatMul", "Conv", "Gemm"))
    used = dict.fromkeys(n for node in products for given in node.input for n in find(given))
    return need([known[name] for name in used])


def vectors(graph: onnx.GraphProto, op: str) -> list[onnx.TensorProto]:
    """List the constant vectors that nodes of one operator read."""
    real = (tensor for tensor in graph.initializer if tensor.data_type in FLOATS)
    known = {tensor.name: tensor for tensor in real if max(tensor.dims, default=0) > 1}
    names = dict.fromkeys(n for node in nodes(graph, op) for n in node.input if n in known)
    return need([known[name] for name in names])


def residuals(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """List the sums of two computed values."""
    constants = {tensor.name for tensor in graph.initializer}
    return need([node for node in nodes(graph, "Add") if not constants & set(node.input)])


def values(graph: onnx.GraphProto) -> Mapping[str, Value]:
    """Give type and shape of each value."""
    opset = helper.make_opsetid("", 22)
    return GraphView(helper.make_model(graph, opset_imports=[opset])).values


def shape(graph: onnx.GraphProto, value: str) -> list[int]:
    """Give the shape of a value, none of whose axes is free."""
    sizes = values(graph)[value].shape or ()
    fixed = [size for size in sizes if isinstance(size, int)]
    return need(fixed if len(fixed) == len(sizes) else [])


def numbers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """List the constants of one real number, without the scales of values of 8 bits."""
    return need([constant(graph, name) for name in real_numbers(helper.make_model(graph))])


def constant(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    """Find the constant of a name."""
    return need([tensor for tensor in graph.initializer if tensor.name == name])[0]


def new_constant(graph: onnx.GraphProto, name: str, array: np.ndarray) -> str:
    """Add a constant, and return its name."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def copy_constant(graph: onnx.GraphProto, node: onnx.NodeProto, position: int) -> onnx.TensorProto:
    """Give an input of a node that is a constant a copy of its own."""
    tensor = graph.initializer.add()
    tensor.CopyFrom(constant(graph, node.input[position]))
    tensor.name = node.input[position] = f"{node.output[0]}.planted.{position}"
    return tensor


def scale(factor: float, array: np.ndarray) -> None:
    """Multiply everything."""
    array *= factor


def add(amount: float, array: np.ndarray) -> None:
    """Add to everything."""
    array += amount


def edit(tensor: onnx.TensorProto, change: Edit) -> None:
    """Change the numbers of a tensor in place, in its own type; they are others then."""
    array = numpy_helper.to_array(tensor)
    changed = array.astype(np.float64)
    change(changed)
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        changed = np.clip(np.rint(changed), limits.min, limits.max)
    if (changed.astype(array.dtype) == array).all():
        raise NotHereError
    tensor.CopyFrom(numpy_helper.from_array(changed.astype(array.dtype), tensor.name))


def at(found: list[Any], place: float) -> Any:  # noqa: ANN401  # one of the list
    """Pick one of a list: 0 is the first and 1 the last."""
    return found[round(place * (len(found) - 1))]


def edit_weight(graph: onnx.GraphProto, place: float, change: Edit) -> None:
    """Change a weight of a product."""
    edit(at(weights(graph), place), change)


def edit_vector(graph: onnx.GraphProto, op: str, place: float, change: Edit) -> None:
    """Change a constant that nodes of one operator read."""
    edit(at(vectors(graph, op), place), change)


def edit_head_bias(graph: onnx.GraphProto, change: Edit) -> None:
    """Change the bias of the head."""
    edit(constant(graph, nodes(graph, "Gemm")[-1].input[2]), change)


def set_attribute(graph: onnx.GraphProto, op: str, place: float, name: str, value: object) -> None:
    """Give an attribute of a node another value."""
    node = at(nodes(graph, op), place)
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def drop_residual(graph: onnx.GraphProto, place: float, kept: int) -> None:
    """Let a sum give one of its two terms."""
    node = at(residuals(graph), place)
    node.op_type = "Identity"
    del node.input[1 - kept]


def other_operator(graph: onnx.GraphProto, op: str, place: float, new: str) -> None:
    """Put another operator in place of one."""
    node = at(nodes(graph, op), place)
    node.op_type = new
    if new in ("Relu", "Sigmoid", "Identity"):
        del node.attribute[:]
        del node.input[1:]


# Operator, attributes, and the constants that it takes besides: numbers in the type of the value,
# whole numbers, or arrays.
Constant = float | list[int] | np.ndarray
Step = tuple[str, Mapping[str, Any], Constant | tuple[Constant, ...] | None]


def after(graph: onnx.GraphProto, value: str, *steps: Step, kind: int = TensorProto.FLOAT) -> None:
    """Insert operators after a value of a type."""
    for node in graph.node:
        node.output[:] = [f"{value}.planted" if name == value else name for name in node.output]
    maker = next(i for i, n in enumerate(graph.node) if f"{value}.planted" in n.output)
    insert(graph, maker + 1, f"{value}.planted", value, steps, kind)


def insert(
    graph: onnx.GraphProto, where: int, start: str, end: str, steps: tuple[Step, ...], kind: int
) -> None:
    """Insert a chain of operators from one value to another."""
    for i, (op, attributes, taken) in enumerate(steps):
        out = end if i == len(steps) - 1 else f"{end}.planted.{i}"
        given = [start]
        for number in taken if isinstance(taken, tuple) else (taken,):
            if number is None:
                continue
            given.append(f"{end}.constant.{i}.{len(given)}")
            dtype = np.int64 if isinstance(number, list) else helper.tensor_dtype_to_np_dtype(kind)
            array = number if isinstance(number, np.ndarray) else np.array(number).astype(dtype)
            new_constant(graph, given[-1], array)
        graph.node.insert(where + i, helper.make_node(op, given, [out], **attributes))
        start = out


def on_residual(graph: onnx.GraphProto, place: float, steps: tuple[Step, ...]) -> None:
    """Insert operators behind a sum."""
    after(graph, at(residuals(graph), place).output[0], *steps)


def before_input(graph: onnx.GraphProto, *steps: Step) -> None:
    """Insert operators between the clip and all that reads it."""
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["planted_clip" if given == name else given for given in node.input]
    insert(graph, 0, name, "planted_clip", steps, graph.input[0].type.tensor_type.elem_type)


def gather_input(graph: onnx.GraphProto, axis: int, order: Callable[[int], list[int]]) -> None:
    """Take the entries of an axis of the clip in another order."""
    size = graph.input[0].type.tensor_type.shape.dim[axis].dim_value
    if order(size) == list(range(size)):
        raise NotHereError
    before_input(graph, ("Gather", {"axis": axis}, order(size)))


def add_to_clip(graph: onnx.GraphProto, place: tuple[int, ...], amount: float) -> None:
    """Add a number to one pixel."""
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim][1:]
    array = np.zeros(shape, np.float32)
    array[place] = amount
    new_constant(graph, "planted_pixels", array)
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["planted_clip" if given == name else given for given in node.input]
    graph.node.insert(0, helper.make_node("Add", [name, "planted_pixels"], ["planted_clip"]))


def index_of(graph: onnx.GraphProto, value: str) -> int:
    """Find the place of the node that makes a value."""
    return next(i for i, node in enumerate(graph.node) if value in node.output)


def swap(one: onnx.TensorProto, other: onnx.TensorProto) -> None:
    """Exchange the values of two constants."""
    arrays = [numpy_helper.to_array(tensor) for tensor in (other, one)]
    for tensor, array in zip((one, other), arrays, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
