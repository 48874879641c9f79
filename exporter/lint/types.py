"""Rules on element types: what one runtime has no kernel for, and what no runtime mixes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx
from onnx import TensorProto

from exporter.graph.view import STANDARD, GraphView, Reader, attribute, dtype_name, result
from exporter.lint.spot import Spot, at_node, at_value

_ARITHMETIC = {
    *("Add", "Sub", "Mul", "Div", "Mod", "Pow", "ReduceSum", "ReduceProd", "Neg", "CumSum"),
}
# Where a computed shape may go: op -> positions of the inputs that are shapes, sizes or axes.
_SHAPE_INPUTS = {
    "Reshape": {1},
    "Expand": {1},
    "Tile": {1},
    "Slice": {1, 2, 3, 4},
    "ConstantOfShape": {0},
    "Range": {0, 1, 2},
    "Split": {1},
    "Pad": {1},
    "Resize": {3},
    "Trilu": {1},
    "Squeeze": {1},
    "Unsqueeze": {1},
}
# What makes a shape of shapes.
_SHAPE_OPS = {
    *("Concat", "Unsqueeze", "Squeeze", "Gather", "Slice", "Cast", "Identity", "Reshape"),
    *("Equal", "Greater", "Less", "Not", "Where", "Min", "Max", "ReduceMin", "ReduceMax"),
} | _ARITHMETIC
_INTEGERS = {TensorProto.INT64, TensorProto.INT32}
_SHAPE_KINDS = _INTEGERS | {TensorProto.BOOL}
_PRODUCTS = {"Einsum", "Gemm", "MatMul"}
_FLOAT_AND_DOUBLE = {TensorProto.FLOAT, TensorProto.DOUBLE}


def einsum_types(view: GraphView) -> Iterator[Spot]:
    """An Einsum of several types."""
    for node in _of(view, {"Einsum"}):
        if len(_kinds(view, node)) > 1:
            yield at_node(node, _said(view, node))


def integer_product(view: GraphView) -> Iterator[Spot]:
    """A product of matrices, or an Einsum, of integers alone."""
    for node in _of(view, _PRODUCTS):
        kinds = _kinds(view, node)
        if len(kinds) == 1 and kinds <= _INTEGERS:
            yield at_node(node, _said(view, node))


def einsum(view: GraphView) -> Iterator[Spot]:
    """An Einsum that has nothing but floats of one type."""
    for node in _of(view, {"Einsum"}):
        kinds = _kinds(view, node)
        if len(kinds) < 2 and not kinds & _INTEGERS:
            yield at_node(node, _said(view, node))


def float64(view: GraphView) -> Iterator[Spot]:
    """A weight or value in float64."""
    for name, value in view.values.items():
        if value.kind == TensorProto.DOUBLE:
            yield at_value(view, name, "is float64")


def int64_arithmetic(view: GraphView) -> Iterator[Spot]:
    """int64 arithmetic on what becomes anything but a shape."""
    shapes = shape_values(view)
    for node in view.nodes:
        integer = view.kind(result(node)) == TensorProto.INT64
        if node.op_type in _ARITHMETIC and integer and result(node) not in shapes:
            yield at_node(node, f"is int64 {node.op_type} outside shapes")


def mixed_types(view: GraphView) -> Iterator[Spot]:
    """Inputs of several types where the operator wants one."""
    return (spot for spot, kinds in _mixed(view) if kinds != _FLOAT_AND_DOUBLE)


def mixed_float64(view: GraphView) -> Iterator[Spot]:
    """float32 and float64 where the operator wants one type: TensorRT takes both for float32."""
    return (spot for spot, kinds in _mixed(view) if kinds == _FLOAT_AND_DOUBLE)


def bfloat16(view: GraphView) -> Iterator[Spot]:
    """Computation in bfloat16."""
    nodes = tuple(n for n in view.nodes if view.kind(result(n)) == TensorProto.BFLOAT16)
    if nodes:
        yield Spot("the graph", f"makes bfloat16 in {len(nodes)} of {len(view.nodes)} nodes", nodes)


def _of(view: GraphView, ops: Collection[str]) -> Iterator[onnx.NodeProto]:
    return (node for node in view.nodes if node.op_type in ops and node.domain in STANDARD)


def _kinds(view: GraphView, node: onnx.NodeProto) -> set[int]:
    """The types of what a node reads, as far as they are known."""
    return {kind for name in node.input if (kind := view.kind(name))}


def _said(view: GraphView, node: onnx.NodeProto) -> str:
    names = " and ".join(dict.fromkeys(dtype_name(view.kind(name)) for name in node.input))
    equation = attribute(node, "equation")
    written = f": {equation.decode(errors='replace')}" if isinstance(equation, bytes) else ""
    return f"is {node.op_type} of {names}{written}"


def _mixed(view: GraphView) -> Iterator[tuple[Spot, set[int]]]:
    for node in view.nodes:
        if node.op_type == "Einsum":  # has a rule of its own
            continue
        for kinds in _by_variable(view, node).values():
            if len(set(kinds)) > 1:
                names = " and ".join(map(dtype_name, kinds))
                yield at_node(node, f"is {node.op_type} of {names}"), set(kinds)


def _by_variable(view: GraphView, node: onnx.NodeProto) -> dict[str, list[int]]:
    """The types of a node's inputs, by the type variable of the operator's definition."""
    domain = "" if node.domain in STANDARD else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, view.opsets.get(domain, 1), domain)
    except (onnx.defs.SchemaError, TypeError):  # another domain's, newer than onnx, or no version
        return {}
    variables = {constraint.type_param_str for constraint in schema.type_constraints}
    found: dict[str, list[int]] = {}
    for position, name in enumerate(node.input):
        if not schema.inputs or not view.kind(name):
            continue
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        if formal.type_str in variables and formal.is_homogeneous:
            found.setdefault(formal.type_str, []).append(view.kind(name))
    return found


def shape_values(view: GraphView) -> set[str]:
    """The values of which nothing is made but shapes."""
    outputs = {value.name for value in view.model.graph.output}
    shapes: set[str] = set()
    for node in reversed(view.nodes):  # whoever reads a value stands behind it
        for name in node.output:
            readers = view.readers.get(name, ())
            if name not in outputs and all(_as_shape(view, r, shapes) for r in readers):
                shapes.add(name)
    return shapes


def _as_shape(view: GraphView, reader: Reader, shapes: set[str]) -> bool:
    node, position = reader
    if position in _SHAPE_INPUTS.get(node.op_type, ()):
        return True
    made = result(node)
    return node.op_type in _SHAPE_OPS and view.kind(made) in _SHAPE_KINDS and made in shapes
