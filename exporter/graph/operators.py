"""The operators of a graph that cut, choose or round where its model does not.

Two smooth functions that agree on many inputs agree on all. A step that cuts, chooses or rounds may
act on other inputs alone: on values that those of a proof do not reach, or in a clip that meets a
condition. A step that takes back another is none in float64, and rounds in any other type. So a
graph must not have more of these steps than its model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx

from exporter.graph.view import STANDARD, attribute, subgraphs
from exporter.graph.weights import WHOLE

# Operator -> the names of the torch functions that make it.
_MADE_BY: Mapping[str, tuple[str, ...]] = {
    "ReduceMax": ("amax",),
    "Relu": ("relu",),
    "Selu": ("selu",),
    "Where": ("where",),
    # These take back a step before: (x + y) - y rounds x to the steps of x + y, and |x| is a root.
    "Div": ("div", "div_", "__rdiv__", "gelu", "layer_norm"),
    "Log": ("log",),
    "Neg": ("neg",),
    "Pow": ("pow", "square", "gelu"),
    "Reciprocal": ("reciprocal", "__rdiv__", "rsqrt"),
    "Sqrt": ("sqrt", "rsqrt", "layer_norm"),
    "Sub": ("sub", "sub_", "__rsub__", "layer_norm"),
}
# Functions that a graph of a low opset writes as their equations, and their operators.
_EQUATIONS = {"gelu": "Gelu", "layer_norm": "LayerNormalization"}
# No model of this package has one of these on values that depend on the clip.
_FOREIGN = frozenset((
    "Abs", "And", "ArgMax", "ArgMin", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "CastLike", "Ceil", "Celu", "Clip", "Compress",
    "Dropout", "DynamicQuantizeLinear", "Elu", "Equal", "Floor", "GlobalLpPool",
    "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "HardSigmoid", "HardSwish",
    "Hardmax", "If", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "LogSoftmax", "Loop",
    "LpNormalization", "LpPool", "Max", "MaxPool", "MaxRoiPool", "Min", "Mod", "Multinomial",
    "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "PRelu", "QLinearMatMul",
    "RandomNormalLike", "RandomUniformLike", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMin", "Resize", "RoiAlign", "Round", "Scan", "ScatterND",
    "Shrink", "Sign", "Softsign", "ThresholdedRelu", "TopK", "Unique", "Upsample", "Xor",
))  # fmt: skip
_SHAPES = ("Shape", "Size")
_ROUNDING = "QuantizeLinear"
_PRODUCTS = ("MatMul", "Gemm", "Conv")


def foreign_operators(
    model: onnx.ModelProto, functions: Mapping[str, int], *, int8: bool
) -> tuple[str, ...]:
    """Name the values of operators that cut, choose or round, and that no step of a model makes.

    Args:
        model: A graph.
        functions: How often the model calls each torch function in a run, by its name.
        int8: Whether products take values of 8 bits.
    """
    rounded = _inputs_of_products(model) if int8 else set[str]()
    operators = {node.op_type for node in model.graph.node}
    whole = {name for name, op in _EQUATIONS.items() if op in operators}
    functions = Counter({name: count for name, count in functions.items() if name not in whole})
    found, counts = list[str](), Counter[str]()
    for node in _of_the_clip(model):
        counts[node.op_type] += 1
        most = sum(functions[name] for name in _MADE_BY.get(node.op_type, ()))
        is_foreign = (
            node.domain not in STANDARD
            or node.op_type in _FOREIGN
            or (node.op_type in _MADE_BY and counts[node.op_type] > most)
            or (node.op_type == "Cast" and attribute(node, "to") in WHOLE)
            or (node.op_type == _ROUNDING and node.output[0] not in rounded)
        )
        if is_foreign:
            found.append(f"{node.op_type} {node.output[0]}")
    return tuple(found)


def _of_the_clip(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """List the nodes that take values of the clip, and not its shape alone."""
    weights = {weight.name for weight in model.graph.initializer}
    live = {value.name for value in model.graph.input} - weights
    found = []
    for node in model.graph.node:
        branches = any(graph for entry in node.attribute for graph in subgraphs(entry))
        if node.op_type not in _SHAPES and (branches or not live.isdisjoint(node.input)):
            live.update(node.output)
            found.append(node)
    return found


def _inputs_of_products(model: onnx.ModelProto) -> set[str]:
    """Find the rounded values that products with a stored weight take, and nothing else."""
    weights = {weight.name for weight in model.graph.initializer}
    restored = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    taken, others = set[str](), set[str]()
    for node in model.graph.node:
        stored = any(restored.get(name) in weights for name in node.input[1:2])
        of_product = node.op_type in _PRODUCTS and stored
        taken |= {restored[name] for name in node.input[: int(of_product)] if name in restored}
        others |= {restored[name] for name in node.input[int(of_product) :] if name in restored}
    return taken - others
