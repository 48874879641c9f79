"""Rules on what a graph is made of: validity, operators no engine has, work done for nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from exporter.graph.view import STANDARD, GraphView, attribute, dtype_name, operand, result
from exporter.lint.spot import Spot, at_node, listed, named_in, node_label
from exporter.lint.types import einsum_types, mixed_float64, mixed_types, shape_values

_CONTROL_FLOW = {"If", "Loop", "Scan"}
# The shape of the result depends on numbers, not on shapes.
_DATA_DEPENDENT = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}
_SEQUENCES = {
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
    *("SequenceLength", "SequenceMap", "SplitToSequence", "ConcatFromSequence", "Optional"),
    *("OptionalGetElement", "OptionalHasElement"),
}
# What OnnxParser.supports_operator of TensorRT-RTX 1.7 denies, but for those above.
_NOT_IN_TENSORRT = {
    *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr"),
    *("BitwiseXor", "CenterCropPad", "Col2Im", "ConvInteger", "CumProd", "DFT", "DeformConv"),
    *("Det", "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool"),
    *("MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "QLinearConv"),
    *("QLinearMatMul", "RegexFullMatch", "SoftmaxCrossEntropyLoss", "StringConcat"),
    *("StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer"),
}
_MOST_AXES = 8  # of TensorRT (Dims::MAX_DIMS)
_WASTE = 1024  # bytes of one weight stored again; below it nobody minds
_FLOAT_BITS: dict[int, tuple[int, int]] = {  # of exponent and mantissa
    TensorProto.FLOAT16: (5, 10),
    TensorProto.BFLOAT16: (8, 7),
    TensorProto.FLOAT: (8, 23),
    TensorProto.DOUBLE: (11, 52),
}


def not_valid(view: GraphView) -> Iterator[Spot]:
    """What ONNX's checker refuses; mixed types, which it finds too, have rules that say more."""
    told = view.contradiction
    nodes = named_in(view, told)
    of_types = (mixed_types, mixed_float64, einsum_types)
    mixed = {spot.where for rule in of_types for spot in rule(view)}
    if told and not (nodes and nodes[0].name in mixed):
        reason = " ".join(told.split())[:300]
        yield Spot(nodes[0].name if nodes else "the graph", f"is not valid ONNX: {reason}", nodes)


def missing_weights(view: GraphView) -> Iterator[Spot]:
    """Weights kept in another file that is not there."""
    if view.missing:
        entries = (entry for name in view.missing for entry in view.weights[name].external_data)
        places = {entry.value for entry in entries if entry.key == "location"}
        what = f"lacks {len(view.missing)} weights kept in {listed(sorted(places))}"
        yield Spot("the graph", what, ())


def control_flow(view: GraphView) -> Iterator[Spot]:
    """Branches and loops."""
    return (at_node(n, f"is {n.op_type}") for n in view.nodes if n.op_type in _CONTROL_FLOW)


def data_dependent_shape(view: GraphView) -> Iterator[Spot]:
    """Operators that give as many elements as the numbers tell."""
    return (at_node(n, f"is {n.op_type}") for n in view.nodes if n.op_type in _DATA_DEPENDENT)


def sequence(view: GraphView) -> Iterator[Spot]:
    """Lists of tensors."""
    return (at_node(n, f"is {n.op_type}") for n in view.nodes if n.op_type in _SEQUENCES)


def not_in_tensorrt(view: GraphView) -> Iterator[Spot]:
    """Operators of the ONNX standard that TensorRT does not know."""
    return (at_node(n, f"is {n.op_type}") for n in view.nodes if n.op_type in _NOT_IN_TENSORRT)


def custom_operator(view: GraphView) -> Iterator[Spot]:
    """Operators outside the ONNX standard."""
    for node in view.nodes:
        if node.domain not in STANDARD:
            yield at_node(node, f"is {node.op_type} of {node.domain}")


def too_many_axes(view: GraphView) -> Iterator[Spot]:
    """A value of more axes than TensorRT has."""
    for node in view.nodes:
        for name in node.output:
            shape = view.values[name].shape if name in view.values else None
            if shape is not None and len(shape) > _MOST_AXES:
                yield at_node(node, f"is {node.op_type} that gives {len(shape)} axes")


def float32_attention(view: GraphView) -> Iterator[Spot]:
    """The operator `Attention` in float32."""
    return (spot for spot, kind in _attentions(view) if kind == TensorProto.FLOAT)


def attention(view: GraphView) -> Iterator[Spot]:
    """The operator `Attention` in any other type."""
    return (spot for spot, kind in _attentions(view) if kind != TensorProto.FLOAT)


def _attentions(view: GraphView) -> Iterator[tuple[Spot, int]]:
    for node in view.nodes:
        if node.op_type == "Attention" and node.domain in STANDARD:
            kind = view.kind(operand(node))
            yield at_node(node, f"is Attention in {dtype_name(kind)}"), kind


def asymmetric_int8(view: GraphView) -> Iterator[Spot]:
    """A quantisation whose zero is not 0."""
    for node in view.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = view.array(node.input[2])
            unsigned = view.kind(node.input[2]) == TensorProto.UINT8
            if unsigned or (zero is not None and np.any(zero)):
                how = dtype_name(view.kind(node.input[2]))
                yield at_node(node, f"is {node.op_type} to {how} with a zero point")


def repeated_weights(view: GraphView) -> Iterator[Spot]:
    """The same weight stored several times."""
    copies: dict[tuple[int, tuple[int, ...], bytes], list[str]] = {}
    for name, tensor in view.constants.items():
        array = view.array(name)
        if array is not None and array.nbytes >= _WASTE:
            content = hashlib.sha256(array.tobytes()).digest()
            copies.setdefault((tensor.data_type, array.shape, content), []).append(name)
    for names in copies.values():
        if len(names) > 1:
            wasted = sum(array.nbytes for array in map(view.array, names[1:]) if array is not None)
            nodes = tuple(r.node for name in names for r in view.readers.get(name, ()))
            what = f"is stored {len(names)} times, {wasted:,} bytes too many: {listed(names)}"
            yield Spot(names[0], what, nodes)


def cast_pair(view: GraphView) -> Iterator[Spot]:
    """A cast that changes nothing, or takes back the one before it."""
    shapes = shape_values(view)
    for node in view.nodes:
        if node.op_type != "Cast":
            continue
        source, to = operand(node), attribute(node, "to")
        if result(node) in shapes:  # a few numbers, read before a run begins
            continue
        if view.kind(source) == to:
            yield at_node(node, f"is Cast of {dtype_name(to)} to itself")
            continue
        before = view.producers.get(source)
        if before is None or before.op_type != "Cast":
            continue
        first = view.kind(operand(before))
        if first == to and _holds(view.kind(source), first):
            through = f"{dtype_name(first)} by way of {dtype_name(view.kind(source))}"
            yield Spot(node_label(node), f"is Cast back to {through}", (node, before))


def _holds(wide: int, narrow: int) -> bool:
    """Whether every number of one type is a number of another."""
    if wide in _FLOAT_BITS and narrow in _FLOAT_BITS:
        return all(w >= n for w, n in zip(_FLOAT_BITS[wide], _FLOAT_BITS[narrow], strict=True))
    try:
        small, large = map(onnx.helper.tensor_dtype_to_np_dtype, (narrow, wide))
        return np.can_cast(small, large)
    except (KeyError, TypeError):  # of types that numpy does not have
        return False
