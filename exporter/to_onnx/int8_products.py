"""Which products of a graph become int8: what a runtime has kernels for, and what pays.

A product is a `MatMul`, `Gemm` or `Conv` with a weight. Those of two activations stay in float32,
since int8 costs them digits, and time on a CPU; so do the head, and what the user keeps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from exporter.errors import OnnxError
from exporter.graph.modules import module_scopes
from model.config import nearest

# The patch embedding is as fast in float32, but much of a small model's file.
PRODUCTS = ("MatMul", "Gemm", "Conv")
_NARROW = 16  # narrower weights, as of Fastformer's logits, are little work before an exponential


@dataclass(frozen=True)
class Form:
    """What one runtime wants of a quantised graph.

    Weights are symmetric int8, one scale for each output channel; activations have one scale for
    the whole tensor, fixed by calibration, so that no clip sees another.
    """

    activations: str  # name of a `QuantType`; of a signed one the zero point is 0
    reduce_range: bool
    split_bias: bool
    # Elements of a weight, and multiplications with it, below which float32 is as fast.
    least_weight: int = 0
    least_work: int = 0


FORMS: Mapping[str, Form] = {
    # TensorRT takes nothing but int8 with zero points of 0.
    "tensorrt": Form("QInt8", reduce_range=False, split_bias=False),
    # On x86, ONNX Runtime has integer kernels for unsigned activations only. Without VNNI they add
    # two products in 16 bits, which overflows unless weights have 7 bits.
    # It has none for stacks of matrices, as `heads_first` and `frame_weights` make.
    "onnxruntime": Form(
        "QUInt8", reduce_range=True, split_bias=True, least_weight=2**14, least_work=2**21
    ),
}


def choose_products(graph: onnx.GraphProto, keep: Collection[str]) -> list[onnx.NodeProto]:
    """The products whose weights become int8.

    Args:
        graph: Of float32.
        keep: Paths of modules whose products stay in float32.

    Raises:
        OnnxError: if a path is unknown, or nothing is left.
    """
    scopes = {node.name: module_scopes(node) for node in graph.node}
    known = frozenset().union(*scopes.values())
    for path in keep:
        if path not in known:
            closest = nearest(path, known)
            hint = f"did you mean {closest!r}?" if closest else None
            raise OnnxError(f"no module {path!r} is in the graph, to keep in float32", remedy=hint)
    sizes = {weight.name: weight.dims for weight in graph.initializer}
    linear = [node for node in graph.node if node.op_type in PRODUCTS and node.input[1] in sizes]
    chosen = [
        node
        for node in linear[:-1]  # the last one is the head
        if scopes[node.name].isdisjoint(keep)
        and (node.op_type == "Conv" or min(sizes[node.input[1]][-2:]) >= _NARROW)
    ]
    if not chosen:
        raise OnnxError("no product is left to quantise", remedy="keep fewer modules in float32")
    return chosen


def find_paying(linear: Sequence[onnx.NodeProto], graph: onnx.GraphProto, form: Form) -> set[str]:
    """Names of the products for which the runtime has an integer one, and one that is faster.

    Those of one weight are decided together, or the file would hold it twice.
    """
    if not form.least_weight:
        return {node.name for node in linear}
    sizes = {weight.name: weight.dims for weight in graph.initializer}
    vectors = {  # that a tensor holds, of one clip where the batch is free
        value.name: math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim[:-1])
        for value in graph.value_info
    }
    multiplied: Counter[str] = Counter()  # vectors by each weight
    for node in graph.node:
        for name in node.input:
            multiplied[name] += vectors.get(node.output[0], 0)

    def pays(weight: str) -> bool:
        elements = math.prod(sizes[weight])
        large = len(sizes[weight]) == 2 and elements >= form.least_weight
        return large and multiplied[weight] * elements >= form.least_work

    return {node.name for node in linear if pays(node.input[1])}
