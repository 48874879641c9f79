"""What would hurt on TensorRT or ONNX Runtime, told from the graph alone, before anything is built.

One rule is one function from a graph to the places where it fires; the table says how bad that is,
for whom, and what to do. Graphs of any origin are read, also those that no runtime loads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from exporter.graph.view import GraphView
from exporter.lint.batch import baked_batch, batch_coupled
from exporter.lint.ranges import (
    float16_not_finite,
    float16_overflow,
    float16_range,
    float16_subnormal,
)
from exporter.lint.spot import Spot, node_label
from exporter.lint.structure import (
    asymmetric_int8,
    attention,
    cast_pair,
    control_flow,
    custom_operator,
    data_dependent_shape,
    float32_attention,
    missing_weights,
    not_in_tensorrt,
    not_valid,
    repeated_weights,
    sequence,
    too_many_axes,
)
from exporter.lint.types import (
    bfloat16,
    einsum,
    einsum_types,
    float64,
    int64_arithmetic,
    integer_product,
    mixed_float64,
    mixed_types,
)

Severity = Literal["error", "warning"]
ORT, TRT = "onnxruntime", "tensorrt"
RUNTIMES = (ORT, TRT)


@dataclass(frozen=True)
class Rule:
    """How bad it is where `find` fires (`error`: will not load or build), for whom, and a way out.

    The last is an imperative.
    """

    find: Callable[[GraphView], Iterator[Spot]]
    severity: Severity
    runtimes: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Finding:
    """One place where a rule fired.

    `where` names a node or a value, and `what` says something of it; `module` is the path of the
    PyTorch module that made it, empty for the model itself and `None` if the file does not tell.
    """

    rule: str
    severity: Severity
    runtimes: tuple[str, ...]
    where: str
    what: str
    module: str | None
    nodes: tuple[str, ...]
    remedy: str


_BOTH = RUNTIMES
RULES: Mapping[str, Rule] = {
    "not-valid": Rule(
        not_valid,
        "error",
        _BOTH,
        "export it again with a current exporter; what it says is what a runtime will say",
    ),
    "missing-weights": Rule(
        missing_weights, "error", _BOTH, "put the file with the weights beside the graph"
    ),
    "einsum-types": Rule(
        einsum_types,
        "error",
        _BOTH,
        "give torch.einsum float operands of one type: torch.arange(n, dtype=torch.float32)",
    ),
    "integer-product": Rule(
        integer_product, "error", (TRT,), "multiply in float32, or add up elementwise products"
    ),
    "mixed-types": Rule(
        mixed_types, "error", _BOTH, "cast the operands to one type in the module, before they meet"
    ),
    "mixed-float64": Rule(
        mixed_float64, "error", (ORT,), "make it float32 in the module: numpy's arrays are float64"
    ),
    "float64": Rule(
        float64,
        "warning",
        _BOTH,
        "make it float32 in the module: one runtime is slow in float64, the other rounds it",
    ),
    "bfloat16": Rule(
        bfloat16, "warning", (ORT,), "run it with CUDA or TensorRT: it has no kernels for a CPU"
    ),
    "int64-arithmetic": Rule(
        int64_arithmetic,
        "warning",
        _BOTH,
        "compute it once in __init__ and register it as a float32 buffer",
    ),
    "einsum": Rule(
        einsum, "warning", _BOTH, "write it as a matrix product: transpose and matmul are fused"
    ),
    "float32-attention": Rule(
        float32_attention,
        "error",
        (TRT,),
        "export with opset 22 or lower, which writes attention as products and softmax",
    ),
    "attention": Rule(
        attention,
        "warning",
        (TRT,),
        "export with opset 22 or lower: TensorRT-RTX 1.7 was seen to crash while it builds this",
    ),
    "custom-operator": Rule(
        custom_operator, "error", (TRT,), "export to the ONNX standard alone, without a runtime's"
    ),
    "not-in-tensorrt": Rule(
        not_in_tensorrt,
        "error",
        (TRT,),
        "write it with other operators; int8 as QuantizeLinear and DequantizeLinear",
    ),
    "sequence": Rule(
        sequence, "error", (TRT,), "keep tensors, not lists of tensors: torch.stack, or slices"
    ),
    "asymmetric-int8": Rule(
        asymmetric_int8,
        "error",
        (TRT,),
        "quantise to int8 with zero points of 0, as tsformer does in model.tensorrt.onnx",
    ),
    "control-flow": Rule(
        control_flow, "warning", _BOTH, "decide in Python, by sizes, so that one branch is traced"
    ),
    "data-dependent-shape": Rule(
        data_dependent_shape, "error", (TRT,), "mask with torch.where instead of selecting"
    ),
    "too-many-axes": Rule(
        too_many_axes, "error", (TRT,), "rearrange in two steps, each of at most 8 axes"
    ),
    "baked-batch": Rule(
        baked_batch,
        "error",
        _BOTH,
        "export with a batch of 2 or more, and take sizes from x.shape within forward",
    ),
    "batch-coupled": Rule(
        batch_coupled,
        "warning",
        _BOTH,
        "reduce over the axes of one clip alone: its result depends on the clips beside it",
    ),
    "float16-not-finite": Rule(
        float16_not_finite, "warning", _BOTH, "keep this weight in float32, or scale it"
    ),
    "float16-overflow": Rule(
        float16_overflow, "warning", _BOTH, "keep its module in float32: float16 ends at 65504"
    ),
    "float16-subnormal": Rule(
        float16_subnormal, "warning", _BOTH, "keep this weight in float32 or bfloat16, or scale it"
    ),
    "float16-range": Rule(
        float16_range, "warning", _BOTH, "keep it in float32 between two casts, as autocast does"
    ),
    "repeated-weights": Rule(
        repeated_weights, "warning", _BOTH, "share one buffer between the modules, or deduplicate"
    ),
    "cast-pair": Rule(cast_pair, "warning", _BOTH, "leave it out, as a runtime may not"),
}


def lint(view: GraphView, rules: Collection[str] = tuple(RULES)) -> tuple[Finding, ...]:
    """Where the rules of these names fire, errors first; otherwise in the order of the table."""
    chosen = ((name, rule) for name, rule in RULES.items() if name in rules)
    found = [_finding(view, name, rule, spot) for name, rule in chosen for spot in rule.find(view)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def _finding(view: GraphView, name: str, rule: Rule, spot: Spot) -> Finding:
    modules = (view.module(node) for node in spot.nodes)
    return Finding(
        rule=name,
        severity=rule.severity,
        runtimes=rule.runtimes,
        where=spot.where,
        what=spot.what,
        module=next((module for module in modules if module is not None), None),
        nodes=tuple(map(node_label, spot.nodes)),
        remedy=rule.remedy,
    )
