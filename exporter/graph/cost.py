"""What one run of an ONNX graph costs: floating point operations and memory traffic (pure).

The graph is counted as it is written, before a runtime fuses or folds anything. A multiply-add is
two operations; a function of one number (exp, erf, a comparison) is one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx

from exporter.errors import OnnxError
from exporter.graph.inference import infer
from exporter.graph.view import dtype_name, without_weights

# These rename memory or read a shape alone: they cost neither operations nor traffic.
_VIEWS = {"Constant", "Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"}
_PICKS = {"Gather", "GatherElements", "GatherND", "Slice"}  # read only as much as they write
_MOVES = "Cast Concat ConstantOfShape Expand Pad Range Split Tile Transpose Trilu Where"
_ELEMENTWISE = """
    Abs Add And Ceil Clip Cos Div Equal Erf Exp Floor Greater GreaterOrEqual IsInf IsNaN Less
    LessOrEqual Log Max Min Mod Mul Neg Not Or Pow Reciprocal Relu Round Sigmoid Sign Sin Sqrt Sub
    Sum Tanh Xor"""
# Operations for each element of the output.
_PER_OUTPUT = dict.fromkeys(_ELEMENTWISE.split(), 1) | {
    **dict.fromkeys((*_VIEWS, *_PICKS, *_MOVES.split()), 0),
    "Softmax": 5,  # maximum, subtract, exp, sum, divide
    "LayerNormalization": 7,  # two sums, subtract, square, divide, scale, shift
    "Gelu": 5,  # scale, erf, add, two products
    "Selu": 4,  # exp, subtract, two products
    "BatchNormalization": 4,  # subtract, divide, scale, shift
    "LeakyRelu": 2,  # compare, product
    "QuantizeLinear": 4,  # divide, round, shift, saturate
    "DequantizeLinear": 2,  # shift, scale
}
_REDUCTIONS = "ArgMax ArgMin CumSum ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum"
_PER_INPUT = dict.fromkeys(_REDUCTIONS.split(), 1) | {"ReduceL2": 2, "ReduceSumSquare": 2}
_PER_INPUT |= dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), 1)
_WINDOWS = {"AveragePool", "MaxPool"}  # one operation for each element of a window
# Matrix products, and the position of their right-hand side.
_MATMULS = {"MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
_IN_A_BYTE = {"int4": 2, "uint4": 2, "float4e2m1": 2, "int2": 4, "uint2": 4}


class MatmulShape(NamedTuple):
    """`batch` products of an `(m, k)` by a `(k, n)` matrix each."""

    batch: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        """Operations of all its products."""
        return 2 * self.batch * self.m * self.k * self.n


@dataclass(frozen=True)
class GraphCost:
    """Cost of one run: `flops` of all nodes and by kind of node, traffic in bytes.

    `matmul_flops` are those of matrix products and convolutions, without biases. `bytes` is the
    traffic if every node reads its inputs and writes its outputs once, and every weight is read
    once (`weight_bytes`). A runtime that fuses nodes, or keeps values in a cache, moves less.
    """

    flops: int
    matmul_flops: int
    bytes: int
    weight_bytes: int
    by_op: Mapping[str, int]


class _Value(NamedTuple):
    kind: int
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return content_bytes(self.kind, self.shape)


class _Values(dict[str, _Value]):
    def __missing__(self, name: str) -> _Value:
        raise OnnxError(f"the shape of {name!r} cannot be found")


def content_bytes(kind: int, shape: Iterable[int]) -> int:
    """The bytes of a tensor's content; types of less than 8 bits are packed.

    Raises:
        KeyError: if this version of onnx does not know the type.
    """
    one = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    return -(-math.prod(shape) * one // _IN_A_BYTE.get(dtype_name(kind), 1))


def count_cost(model: onnx.ModelProto, batch: int) -> GraphCost:
    """Count what one run of `model` on `batch` clips costs.

    Raises:
        OnnxError: if the graph is fixed at another batch, the shape of a value cannot be found, or
            it holds an operator whose cost is not known.
    """
    values = _infer_values(model, batch)
    weights = {weight.name for weight in model.graph.initializer}
    weights |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    by_op: Counter[str] = Counter()
    matmul_flops = traffic = 0
    for node in model.graph.node:
        product = _product(node, values)
        matmul_flops += product.flops if product else 0
        by_op[node.op_type] += _flops(node, values, product)
        traffic += 0 if node.op_type in _VIEWS else _traffic(node, values, weights)
    read = weights & {name for node in model.graph.node for name in node.input}
    weight_bytes = sum(values[name].bytes for name in read)
    kinds = {op: flops for op, flops in by_op.most_common() if flops}
    return GraphCost(by_op.total(), matmul_flops, traffic + weight_bytes, weight_bytes, kinds)


def why_unknown(model: onnx.ModelProto, batch: int) -> str:
    """Say why the cost of a graph cannot be counted; empty if it can."""
    try:
        count_cost(model, batch)
    except OnnxError as error:
        return str(error)
    return ""


def matmul_shapes(model: onnx.ModelProto, batch: int) -> Counter[MatmulShape]:
    """Count the matrix products of one run by shape; a convolution counts as its matrix product.

    Products that share one right-hand side are one product. Raises as `count_cost` does.
    """
    values = _infer_values(model, batch)
    products = (_product(node, values) for node in model.graph.node)
    return Counter(product for product in products if product)


def _flops(node: onnx.NodeProto, values: _Values, product: MatmulShape | None) -> int:
    op, made = node.op_type, math.prod(values[node.output[0]].shape)
    if product:
        biased = op in {"Gemm", "Conv"} and len(node.input) > 2 and node.input[2]
        return product.flops + (made if biased else 0)
    if op in _PER_INPUT:
        return _PER_INPUT[op] * math.prod(values[node.input[0]].shape)
    if op in _WINDOWS:
        return math.prod(next(a.ints for a in node.attribute if a.name == "kernel_shape")) * made
    if op not in _PER_OUTPUT:
        raise OnnxError(f"the cost of operator {op} of {node.name or node.output[0]} is not known")
    return _PER_OUTPUT[op] * made


def _traffic(node: onnx.NodeProto, values: _Values, weights: Collection[str]) -> int:
    """Bytes that a node reads and writes, without weights."""
    written = sum(values[name].bytes for name in node.output if name)
    read = {name: values[name].bytes for name in node.input if name and name not in weights}
    if node.op_type in _PICKS and node.input[0] in read:
        read[node.input[0]] = min(read[node.input[0]], written)
    return written + sum(read.values())


def _product(node: onnx.NodeProto, values: _Values) -> MatmulShape | None:
    """The matrix products that a node computes; `None` if it computes none."""
    op = node.op_type
    shapes: list[tuple[int, ...]] = [values[name].shape if name else () for name in node.input]
    attributes = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
    if op in _MATMULS:
        return _matmul(shapes[0], shapes[_MATMULS[op]])
    if op == "Gemm":
        m, k = shapes[0][:: -1 if attributes.get("transA") else 1]
        return MatmulShape(1, m, k, shapes[1][0 if attributes.get("transB") else 1])
    if op in _CONVOLUTIONS:
        groups = attributes.get("group", 1)
        filters, per_group, *kernel = shapes[_CONVOLUTIONS[op]]
        clips, _, *places = values[node.output[0]].shape
        rows = math.prod((clips, *places))
        return MatmulShape(groups, rows, per_group * math.prod(kernel), filters // groups)
    return None


def _matmul(left: Sequence[int], right: Sequence[int]) -> MatmulShape:
    """The product of operands of these shapes, as in numpy's `matmul`."""
    left = (1, *left) if len(left) == 1 else left
    *many, k, n = (*right, 1) if len(right) == 1 else right
    if math.prod(many) == 1:  # one right-hand side: all rows of the left-hand side are one matrix
        return MatmulShape(1, math.prod(left[:-1]), k, n)
    return MatmulShape(math.prod(np.broadcast_shapes(left[:-2], many)), left[-2], k, n)


def _infer_values(model: onnx.ModelProto, batch: int) -> _Values:
    """Type and shape of every value, weights included, by name."""
    bound = _bind(model, batch)
    try:
        graph = infer(bound, strict=True).graph
    except Exception as error:  # the C++ inference raises several unrelated classes
        raise OnnxError(f"no shapes can be found at batch {batch}: {error}") from error
    values = _Values({w.name: _Value(w.data_type, tuple(w.dims)) for w in model.graph.initializer})
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shape = tuple(dim.dim_value for dim in kind.shape.dim)
            values[value.name] = _Value(kind.elem_type, shape)
    return values


def _bind(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model at this batch, without the weights that shape inference does not read."""
    bound = without_weights(model)
    weights = {weight.name for weight in model.graph.initializer}
    _bind_inputs([value for value in bound.graph.input if value.name not in weights], batch)
    for value in bound.graph.output:  # the file declares them for another batch
        value.type.tensor_type.ClearField("shape")
    return bound


def _bind_inputs(inputs: Sequence[onnx.ValueInfoProto], batch: int) -> None:
    """Write `batch` into the free first axes of the inputs, or require it of a fixed graph."""
    shapes = [value.type.tensor_type.shape.dim for value in inputs]
    free = [dim for shape in shapes for dim in shape if not dim.HasField("dim_value")]
    names = sorted({dim.dim_param for dim in free})
    others = any(not dim.HasField("dim_value") for shape in shapes for dim in shape[1:])
    if len(names) > 1 or "" in names or others:
        raise OnnxError("only the batch may be free", got=[name or "unnamed" for name in names])
    for dim in free:
        dim.dim_value = batch
    fixed = next((dim.dim_value for shape in shapes[:1] for dim in shape[:1]), batch)
    if not free and fixed != batch:
        raise OnnxError(f"the graph is fixed at batch {fixed}", expected=batch)
