"""Rules on operators: those that an engine cannot hold, and those that keep it from being built."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from onnx import TensorProto

from exporter.graph.attention import attentions_with_nodes
from exporter.graph.view import STANDARD, GraphView, dtype_name, operand
from exporter.lint.location import Spot, at_node
from exporter.lint.rule import TENSORRT, rule

_CONTROL_FLOW = {"If", "Loop", "Scan"}
# The shape of the result depends on numbers, not on shapes.
_DATA_DEPENDENT = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}
_SEQUENCES = {
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SplitToSequence",
}
# What OnnxParser.supports_operator of TensorRT-RTX 1.7 denies, except those above.
_NOT_IN_TENSORRT = {
    "AffineGrid",
    "Bernoulli",
    "BitCast",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "CenterCropPad",
    "Col2Im",
    "ConvInteger",
    "CumProd",
    "DFT",
    "DeformConv",
    "Det",
    "DynamicQuantizeLinear",
    "ImageDecoder",
    "MatMulInteger",
    "MaxRoiPool",
    "MaxUnpool",
    "MelWeightMatrix",
    "Multinomial",
    "NegativeLogLikelihoodLoss",
    "QLinearConv",
    "QLinearMatMul",
    "RegexFullMatch",
    "SoftmaxCrossEntropyLoss",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "SwiGLU",
    "TfIdfVectorizer",
}
_MOST_AXES = 8  # of TensorRT (Dims::MAX_DIMS)


@rule(
    "float32-attention",
    severity="error",
    runtimes=[TENSORRT],
    remedy="export with opset 22 or lower, which writes attention as products and softmax",
)
def float32_attention(view: GraphView) -> Iterator[Spot]:
    """The operator `Attention` (opset 23 and above) computes in float32.

    TensorRT builds no engine from it: the builder returns nothing. Written as matrix products and
    a softmax, the same attention builds.
    """
    return (spot for spot, kind in _attentions(view) if kind == TensorProto.FLOAT)


@rule(
    "attention",
    severity="warning",
    runtimes=[TENSORRT],
    remedy="export with opset 22 or lower: TensorRT-RTX 1.7 was seen to crash while it builds this",
)
def attention(view: GraphView) -> Iterator[Spot]:
    """The operator `Attention` (opset 23 and above) computes in another type than float32.

    TensorRT builds it in float16 and bfloat16, but TensorRT-RTX 1.7 was seen to crash during the
    build. Matrix products and a softmax do not have this risk.
    """
    return (spot for spot, kind in _attentions(view) if kind != TensorProto.FLOAT)


@rule(
    "unfused-attention",
    severity="warning",
    runtimes=[TENSORRT],
    remedy="export with --precision fp16 or bf16, and heads of 16 to 256 channels in steps of 8",
)
def unfused_attention(view: GraphView) -> Iterator[Spot]:
    """An attention of a graph in lower precision cannot be one kernel of TensorRT.

    TensorRT has fused attention for products in float16 and bfloat16, and for heads of 16 to 256
    channels in steps of 8. Any other attention writes its weights to memory and reads them again.
    In a graph that is float32 throughout only attention of one query is fused, and the rule
    does not apply. What the builder did fuse stands in the report of an export.
    """
    kinds = {view.kind(operand(node)) for node in view.standard(("MatMul",))}
    lower = not kinds.isdisjoint((TensorProto.FLOAT16, TensorProto.BFLOAT16))
    for found, node in attentions_with_nodes(view):
        if lower and found.obstacle:
            yield at_node(node, f"belongs to an attention that is not fused: {found.obstacle}")


@rule(
    "custom-operator",
    severity="error",
    runtimes=[TENSORRT],
    remedy="export with standard ONNX operators only",
)
def custom_operator(view: GraphView) -> Iterator[Spot]:
    """An operator is not in the ONNX standard.

    Such an operator belongs to one runtime, for example `com.microsoft` to ONNX Runtime, and
    TensorRT does not know it. A graph that ONNX Runtime has optimised and saved is full of them:
    give TensorRT the graph from before that.
    """
    for node in view.nodes:
        if node.domain not in STANDARD:
            yield at_node(node, f"is {node.op_type} of {node.domain}")


@rule(
    "not-in-tensorrt",
    severity="error",
    runtimes=[TENSORRT],
    remedy="write it with other operators; int8 as QuantizeLinear and DequantizeLinear",
)
def not_in_tensorrt(view: GraphView) -> Iterator[Spot]:
    """An operator is in the ONNX standard, but the parser of TensorRT does not support it.

    The list is what the parser of TensorRT-RTX 1.7 denies. Dynamic quantisation and the integer
    products (`MatMulInteger`, `QLinearMatMul`) are the usual ones.
    """
    return _of(view, _NOT_IN_TENSORRT)


@rule(
    "sequence",
    severity="error",
    runtimes=[TENSORRT],
    remedy="keep tensors, not lists of tensors: torch.stack, or slices",
)
def sequence(view: GraphView) -> Iterator[Spot]:
    """An operator makes or reads a list of tensors, or an optional value.

    TensorRT has tensors alone. The usual cause is a Python list of tensors in `forward` that
    reaches the graph, as `torch.split` with a size that is computed.
    """
    return _of(view, _SEQUENCES)


@rule(
    "asymmetric-int8",
    severity="error",
    runtimes=[TENSORRT],
    remedy="quantise to int8 with zero points of 0, as tsformer does in model.tensorrt.onnx",
)
def asymmetric_int8(view: GraphView) -> Iterator[Spot]:
    """A quantisation has a zero point other than 0, or quantises to uint8.

    TensorRT takes symmetric int8 alone. ONNX Runtime is often faster with uint8 activations, so
    that one graph does not suit both.
    """
    for node in view.standard(("QuantizeLinear", "DequantizeLinear")):
        if len(node.input) > 2:
            zero = view.array(node.input[2])
            unsigned = view.kind(node.input[2]) == TensorProto.UINT8
            if unsigned or (zero is not None and np.any(zero)):
                how = dtype_name(view.kind(node.input[2]))
                yield at_node(node, f"is {node.op_type} to {how} with a zero point")


@rule(
    "control-flow",
    severity="warning",
    remedy="decide in Python, by sizes, so that one branch is traced",
)
def control_flow(view: GraphView) -> Iterator[Spot]:
    """The graph has a branch or a loop.

    Optimisers do not fuse across its border, and each run waits for the condition. A decision by
    sizes is known at the export and needs no branch in the graph.
    """
    return _of(view, _CONTROL_FLOW)


@rule(
    "data-dependent-shape",
    severity="error",
    runtimes=[TENSORRT],
    remedy="mask with torch.where instead of selecting",
)
def data_dependent_shape(view: GraphView) -> Iterator[Spot]:
    """The size of a result depends on numbers in a tensor, not on shapes.

    An example is `x[mask]`, which becomes `NonZero`. An engine plans its memory before the run, so
    that every size must follow from the sizes of the inputs.
    """
    return _of(view, _DATA_DEPENDENT)


@rule(
    "too-many-axes",
    severity="error",
    runtimes=[TENSORRT],
    remedy="rearrange in two steps, each of at most 8 axes",
)
def too_many_axes(view: GraphView) -> Iterator[Spot]:
    """A value has more than 8 axes, which is the limit of TensorRT.

    The usual cause is one `rearrange` that splits many axes at once.
    """
    for node in view.nodes:
        for name in node.output:
            shape = view.values[name].shape if name in view.values else None
            if shape is not None and len(shape) > _MOST_AXES:
                yield at_node(node, f"is {node.op_type} that gives {len(shape)} axes")


def _of(view: GraphView, ops: Collection[str]) -> Iterator[Spot]:
    return (at_node(node, f"is {node.op_type}") for node in view.standard(ops))


def _attentions(view: GraphView) -> Iterator[tuple[Spot, int]]:
    for node in view.standard(("Attention",)):
        kind = view.kind(operand(node))
        yield at_node(node, f"is Attention in {dtype_name(kind)}"), kind
