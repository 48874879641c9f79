"""Choose the products of a graph that become int8.

A product is a `MatMul`, `Gemm` or `Conv` with a weight. It becomes int8 if the runtime has an
integer kernel for it and the kernel saves time. These products stay in float32: a product of two
activations, because int8 makes it less accurate, and slower on a CPU; the head; and the products
of the modules that the user keeps in float32.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from exporter.errors import OnnxError
from exporter.graph.modules import module_scopes
from model.config import nearest

# `Conv` is the patch embedding. It is not faster in int8, but it is a large part of the file of a
# small model.
PRODUCTS = ("MatMul", "Gemm", "Conv")
# A weight with a side below this stays in float32. An example is the weight of Fastformer's logits:
# its product is little work, and an exponential would amplify its rounding.
_MIN_SIDE = 16


@dataclass(frozen=True)
class Form:
    """The form of a quantised graph that one runtime needs.

    Weights are symmetric int8 with one scale for each output channel. Activations have one scale
    for the whole tensor, fixed by calibration, so the result of a clip does not depend on the other
    clips of its batch.
    """

    activations: str  # name of a `QuantType`; for a signed type the zero point is 0
    reduce_range: bool  # weights have 7 bits
    split_bias: bool  # see `quantize._split_bias`
    # If a weight has fewer elements, or takes part in fewer multiplications, float32 is as fast.
    least_weight: int = 0
    least_work: int = 0


FORMS: Mapping[str, Form] = {
    # TensorRT accepts only int8 with zero points of 0.
    "tensorrt": Form("QInt8", reduce_range=False, split_bias=False),
    # On x86, ONNX Runtime has integer kernels for unsigned activations only. On a CPU without VNNI
    # these kernels add two products in 16 bits, which overflows unless weights have 7 bits. ONNX
    # Runtime has no integer kernel for stacked matrices, which the rewrites `heads_first` and
    # `frame_weights` make.
    "onnxruntime": Form(
        "QUInt8", reduce_range=True, split_bias=True, least_weight=2**14, least_work=2**21
    ),
}


def choose_products(graph: onnx.GraphProto, keep: Collection[str]) -> list[onnx.NodeProto]:
    """Return the products whose weights are stored in int8.

    Args:
        graph: A float32 graph.
        keep: Paths of modules whose products stay in float32.

    Raises:
        OnnxError: if a path is unknown, or no product is left.
    """
    scopes = {node.name: module_scopes(node) for node in graph.node}
    known = frozenset().union(*scopes.values())
    for path in keep:
        if path not in known:
            closest = nearest(path, known)
            hint = f"did you mean {closest!r}?" if closest else None
            raise OnnxError(f"the graph has no module {path!r} to keep in float32", remedy=hint)
    sizes = {weight.name: weight.dims for weight in graph.initializer}
    linear = [node for node in graph.node if node.op_type in PRODUCTS and node.input[1] in sizes]
    chosen = [
        node
        for node in linear[:-1]  # the last product is the head
        if scopes[node.name].isdisjoint(keep)
        and (node.op_type == "Conv" or min(sizes[node.input[1]][-2:]) >= _MIN_SIDE)
    ]
    if not chosen:
        raise OnnxError("no product is left to quantise", remedy="keep fewer modules in float32")
    return chosen


def find_vanished(
    quantised: onnx.GraphProto, linear: Sequence[onnx.NodeProto], chosen: Collection[str]
) -> set[str]:
    """Return the names of the chosen products whose fp16 activations 8 bits hold as zero.

    The quantiser takes 1 for a step that is no normal number of fp16.
    """
    steps = {
        weight.name.removesuffix("_scale")
        for weight in quantised.initializer
        if weight.name.endswith("_scale")
        and weight.data_type == onnx.TensorProto.FLOAT16
        and (numpy_helper.to_array(weight) == 1).all()
    }
    return {node.name for node in linear if node.name in chosen and node.input[0] in steps}


def find_faster(linear: Sequence[onnx.NodeProto], graph: onnx.GraphProto, form: Form) -> set[str]:
    """Return the names of the products for which the runtime has a faster integer kernel.

    All products of one weight get the same decision. Otherwise the file would hold the weight
    twice.
    """
    if not form.least_weight:
        return {node.name for node in linear}
    sizes = {weight.name: weight.dims for weight in graph.initializer}
    rows = {  # the number of vectors in each tensor; a free batch counts as 1
        value.name: math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim[:-1])
        for value in graph.value_info
    }
    multiplied: Counter[str] = Counter()  # the number of vectors that each weight multiplies
    for node in graph.node:
        for name in node.input:
            multiplied[name] += rows.get(node.output[0], 0)

    def is_faster(weight: str) -> bool:
        elements = math.prod(sizes[weight])
        large = len(sizes[weight]) == 2 and elements >= form.least_weight
        return large and multiplied[weight] * elements >= form.least_work

    return {node.name for node in linear if is_faster(node.input[1])}
