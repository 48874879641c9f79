"""Find softmax attention in a graph, `softmax(q k^T) v`, and what keeps TensorRT from fusing it.

A product with a weight is none of the two products: so neither the random features of FAVOR+ nor a
classifier count as attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from exporter.graph.view import GraphView, dtype_name, operand, result

FUSED_WIDTHS = range(16, 257, 8)  # of a head, that TensorRT has a fused attention for
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# Operators between the product and the softmax, and between the softmax and the second product.
_BEFORE = {"Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Sub", "Where"}
_AFTER = {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape"}
_ON_THE_WAY = {
    "Add",
    "Cast",
    "Concat",
    "DequantizeLinear",
    "Identity",
    "Mul",
    "QuantizeLinear",
    "Reshape",
    "Transpose",
    "Unsqueeze",
}
_OF_WEIGHTS = {"Cast", "DequantizeLinear", "Mul", "Reshape", "Transpose"}
_FRAME_WEIGHT_AXES = 4  # of a weight that differs from frame to frame and from head to head


@dataclass(frozen=True)
class GraphAttention:
    """One attention: the path of its module, its nodes, and why TensorRT cannot fuse it.

    `obstacle` is empty where nothing in the graph forbids a fused kernel.
    """

    module: str | None
    nodes: tuple[str, ...]
    obstacle: str


def find_attentions(view: GraphView) -> tuple[GraphAttention, ...]:
    """Every softmax attention of a graph, in the order of the nodes."""
    return tuple(found for found, _ in attentions_with_nodes(view))


def attentions_with_nodes(view: GraphView) -> Iterator[tuple[GraphAttention, onnx.NodeProto]]:
    """Yield every softmax attention with the node of its softmax."""
    for node in view.standard(("Softmax",)):
        logits, mixed = _product_before(view, operand(node)), _product_after(view, result(node))
        if logits is not None and mixed is not None:
            names = tuple(part.name for part in (logits, node, mixed))
            yield GraphAttention(view.module(node), names, _obstacle(view, logits)), node


def _product_before(view: GraphView, name: str) -> onnx.NodeProto | None:
    """The product of two computed values that makes the logits."""
    node = view.producers.get(name)
    if node is None:
        return None
    if _is_product(view, node):
        return node
    if node.op_type not in _BEFORE:
        return None
    found = (_product_before(view, value) for value in node.input)
    return next((product for product in found if product is not None), None)


def _product_after(view: GraphView, name: str) -> onnx.NodeProto | None:
    """The product of the attention weights, on its left, with a computed value."""
    for reader in view.readers.get(name, ()):
        if reader.position == 0 and _is_product(view, reader.node):
            return reader.node
        if reader.node.op_type in _AFTER:
            found = _product_after(view, result(reader.node))
            if found is not None:
                return found
    return None


def _is_product(view: GraphView, node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMul" and not any(_is_weight(view, name) for name in node.input)


def _is_weight(view: GraphView, name: str) -> bool:
    """Whether a value is the same in every run, such as a weight that is stored in int8."""
    node = view.producers.get(name)
    if name in view.constants or node is None:
        return name in view.constants
    made_of_weights = all(_is_weight(view, value) for value in node.input if value)
    return node.op_type in _OF_WEIGHTS and made_of_weights


def _obstacle(view: GraphView, logits: onnx.NodeProto) -> str:
    """Why TensorRT has no fused kernel for an attention with these logits."""
    kind = view.kind(operand(logits))
    if kind and kind not in _HALF:
        return f"TensorRT fuses {dtype_name(kind)} attention of one query only"
    value = view.values.get(operand(logits))
    width = value.shape[-1] if value is not None and value.shape else None
    if isinstance(width, int) and width not in FUSED_WIDTHS:
        allowed = f"{FUSED_WIDTHS[0]} to {FUSED_WIDTHS[-1]}, in steps of {FUSED_WIDTHS.step}"
        return f"a head has {width} channels, and TensorRT fuses {allowed}"
    if _has_frame_weights(view, operand(logits)):
        return "the rewrite frame_weights gives its query weights of each frame"
    return ""


def _has_frame_weights(view: GraphView, name: str) -> bool:
    """Whether a query is a product with weights that are stacked by frame and head."""
    node = view.producers.get(name)
    while node is not None and node.op_type in _ON_THE_WAY:
        inputs = [value for value in node.input if value not in view.constants]
        node = view.producers.get(inputs[0]) if inputs else None
    if node is None or node.op_type != "MatMul":
        return False
    weight = view.constants.get(operand(node, 1))
    return weight is not None and len(weight.dims) == _FRAME_WEIGHT_AXES
