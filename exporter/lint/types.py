"""Rules on element types: those without a kernel in a runtime, and those that no runtime mixes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from exporter.graph.view import STANDARD, GraphView, Reader, attribute, dtype_name, result
from exporter.lint.location import Spot, at_node, at_value
from exporter.lint.rule import ONNX_RUNTIME, TENSORRT, rule

_ARITHMETIC = {"Add", "CumSum", "Div", "Mod", "Mul", "Neg", "Pow", "ReduceProd", "ReduceSum", "Sub"}
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
# Operators that make a shape of shapes.
_SHAPE_OPS = _ARITHMETIC | {
    "Cast",
    "Concat",
    "Equal",
    "Gather",
    "Greater",
    "Identity",
    "Less",
    "Max",
    "Min",
    "Not",
    "ReduceMax",
    "ReduceMin",
    "Reshape",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Where",
}
_INTEGERS = {TensorProto.INT64, TensorProto.INT32}
_SHAPE_KINDS = _INTEGERS | {TensorProto.BOOL}
_PRODUCTS = {"Einsum", "Gemm", "MatMul"}
_FLOAT_AND_DOUBLE = {TensorProto.FLOAT, TensorProto.DOUBLE}


@rule(
    "einsum-types",
    severity="error",
    remedy="give torch.einsum float operands of one type: torch.arange(n, dtype=torch.float32)",
)
def einsum_types(view: GraphView) -> Iterator[Spot]:
    """An `Einsum` has operands of different types.

    ONNX allows one type for all operands, so that no runtime loads the graph. The usual cause is
    `torch.arange(n)`, which is int64, multiplied by frequencies in float32: PyTorch converts the
    operands, and the exporter does not write the conversion.
    """
    for node in view.standard({"Einsum"}):
        if len(_kinds(view, node)) > 1:
            yield at_node(node, _said(view, node))


@rule(
    "integer-product",
    severity="error",
    runtimes=[TENSORRT],
    remedy="multiply in float32, or add up elementwise products",
)
def integer_product(view: GraphView) -> Iterator[Spot]:
    """A matrix product or an `Einsum` has integer operands alone.

    TensorRT has no matrix product of int32 or int64; its parser refuses the node. Small integers
    are exact in float32.
    """
    for node in view.standard(_PRODUCTS):
        kinds = _kinds(view, node)
        if len(kinds) == 1 and kinds <= _INTEGERS:
            yield at_node(node, _said(view, node))


@rule(
    "mixed-types",
    severity="error",
    remedy="cast the operands to one type in the module, before they meet",
)
def mixed_types(view: GraphView) -> Iterator[Spot]:
    """An operator that wants inputs of one type reads inputs of different types.

    PyTorch converts such operands by itself; ONNX does not, and no runtime loads the graph. Usual
    causes are a float16 model with a scale that stayed in float32, and positions in int64.
    """
    return (spot for spot, kinds in _mixed(view) if kinds != _FLOAT_AND_DOUBLE)


@rule(
    "mixed-float64",
    severity="error",
    runtimes=[ONNX_RUNTIME],
    remedy="make it float32 in the module: numpy's arrays are float64",
)
def mixed_float64(view: GraphView) -> Iterator[Spot]:
    """An operator that wants inputs of one type reads float32 and float64.

    ONNX Runtime refuses the graph. TensorRT loads it, because it reads float64 as float32. The
    usual cause is a table that was computed with numpy and registered without a conversion.
    """
    return (spot for spot, kinds in _mixed(view) if kinds == _FLOAT_AND_DOUBLE)


@rule(
    "float64",
    severity="warning",
    remedy="make it float32 in the module: one runtime is slow in float64, the other rounds it",
)
def float64(view: GraphView) -> Iterator[Spot]:
    """A weight or a value is float64.

    ONNX Runtime computes it slowly, and TensorRT rounds it to float32: the two do not compute the
    same function.
    """
    for name, value in view.values.items():
        if value.kind == TensorProto.DOUBLE:
            yield at_value(view, name, "is float64")


@rule(
    "bfloat16",
    severity="warning",
    runtimes=[ONNX_RUNTIME],
    remedy="run it with CUDA or TensorRT: it has no kernels for a CPU",
)
def bfloat16(view: GraphView) -> Iterator[Spot]:
    """The graph computes in bfloat16.

    ONNX Runtime has no bfloat16 kernels for a CPU and does not load the graph there. With CUDA it
    does.
    """
    nodes = tuple(n for n in view.nodes if view.kind(result(n)) == TensorProto.BFLOAT16)
    if nodes:
        yield Spot("the graph", f"makes bfloat16 in {len(nodes)} of {len(view.nodes)} nodes", nodes)


@rule(
    "int64-arithmetic",
    severity="warning",
    remedy="compute it once in __init__ and register it as a float32 buffer",
)
def int64_arithmetic(view: GraphView) -> Iterator[Spot]:
    """The graph computes in int64, and the result is not a shape.

    Positions and indices are the usual case. They are the same in every run, but are computed
    again in each, in a type for which runtimes have few fast kernels. Arithmetic on shapes is not
    reported: a runtime does it once.
    """
    shapes = shape_values(view)
    for node in view.standard(_ARITHMETIC):
        integer = view.kind(result(node)) == TensorProto.INT64
        if integer and result(node) not in shapes:
            yield at_node(node, f"is int64 {node.op_type} outside shapes")


@rule(
    "einsum",
    severity="warning",
    remedy="write it as a matrix product: transpose and matmul are fused",
)
def einsum(view: GraphView) -> Iterator[Spot]:
    """The graph has an `Einsum` of floats of one type.

    It is computed correctly, but runtimes recognise attention and its fusions in matrix products,
    not in an `Einsum`.
    """
    for node in view.standard({"Einsum"}):
        kinds = _kinds(view, node)
        if len(kinds) < 2 and not kinds & _INTEGERS:
            yield at_node(node, _said(view, node))


def _kinds(view: GraphView, node: onnx.NodeProto) -> set[int]:
    """The known types of the inputs of a node."""
    return {kind for name in node.input if (kind := view.kind(name))}


def _said(view: GraphView, node: onnx.NodeProto) -> str:
    names = " and ".join(dict.fromkeys(dtype_name(view.kind(name)) for name in node.input))
    equation = attribute(node, "equation")
    written = f": {equation.decode(errors='replace')}" if isinstance(equation, bytes) else ""
    return f"is {node.op_type} of {names}{written}"


def _mixed(view: GraphView) -> Iterator[tuple[Spot, set[int]]]:
    for node in view.nodes:
        if node.op_type == "Einsum":  # `einsum-types` reports it
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
    except (onnx.defs.SchemaError, TypeError):
        return {}  # of another domain, newer than the onnx package, or without a version
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
    """The values that are used for shapes alone."""
    outputs = {value.name for value in view.model.graph.output}
    shapes: set[str] = set()
    for node in reversed(view.nodes):  # the readers of a value follow its maker
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
