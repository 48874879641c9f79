"""Each rule of the linter where it fires, and the nearest graph where it must not."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from exporter import ExportSpec, cli
from exporter.errors import GraphInputError
from exporter.graph.file import read_graph
from exporter.graph.view import GraphView
from exporter.lint import RULES, RUNTIMES, lint
from exporter.lint.rule import REGISTERED, rule
from exporter.load import load_model
from exporter.precision import in_precision
from exporter.report.findings import count_line
from exporter.rewrite.choose import rewrite_for_export
from exporter.to_onnx.export import export_onnx

FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
DOUBLE, INT64, BOOL = TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL
X = ("x", FLOAT, [2, 4])
FREE = ("x", FLOAT, ["batch", 4])


def graph(*nodes, inputs=(X,), outputs=(("y", FLOAT, None),), weights=(), opset=20):
    """A model of nodes `(op, inputs, outputs, attributes)`; what is not valid stays as it is."""
    made = helper.make_graph(
        [
            helper.make_node(op, reads, makes, name=f"{op}_{i}", **(more[0] if more else {}))
            for i, (op, reads, makes, *more) in enumerate(nodes)
        ],
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def between_casts(op, kind, *more, attributes=None, weights=()):
    """`op` in another type, its input and output cast."""
    return graph(
        ("Cast", ["x"], ["h"], {"to": kind}),
        (op, ["h", *more], ["r"], attributes or {}),
        ("Cast", ["r"], ["y"], {"to": FLOAT}),
        weights=weights,
    )


def written_attention(kind, width):
    """Attention of tokens by themselves, written as products and a softmax."""
    return graph(
        ("Cast", ["x"], ["h"], {"to": kind}),
        ("Transpose", ["h"], ["t"], {"perm": [0, 2, 1]}),
        ("MatMul", ["h", "t"], ["l"]),
        ("Softmax", ["l"], ["a"]),
        ("MatMul", ["a", "h"], ["r"]),
        ("Cast", ["r"], ["y"], {"to": FLOAT}),
        inputs=(("x", FLOAT, [1, 8, width]),),
    )


def branch():
    node = helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(np.float32(1)))
    value = helper.make_tensor_value_info("b", FLOAT, [])
    return helper.make_graph([node], "branch", [], [value])


def normed(kind, scale, opset=20):
    return graph(
        ("Cast", ["x"], ["h"], {"to": kind}),
        ("LayerNormalization", ["h", "w"], ["r"]),
        ("Cast", ["r"], ["y"], {"to": FLOAT}),
        weights=[("w", np.ones(4, scale))],
        opset=opset,
    )


def cast_weight(values):
    return graph(
        ("Cast", ["w"], ["h"], {"to": HALF}),
        ("Cast", ["x"], ["k"], {"to": HALF}),
        ("Mul", ["k", "h"], ["r"]),
        ("Cast", ["r"], ["y"], {"to": FLOAT}),
        weights=[("w", np.asarray(values, np.float32))],
    )


def half_weight(values):
    return graph(
        ("Cast", ["x"], ["k"], {"to": HALF}),
        ("Mul", ["k", "w"], ["r"]),
        ("Cast", ["r"], ["y"], {"to": FLOAT}),
        weights=[("w", np.asarray(values, np.float16))],
    )


def reduced(op, axes, inputs=(FREE,), keepdims=1, **more):
    weights = [("a", np.asarray(axes))] if axes is not None else []
    reads = ["x", "a"] if axes is not None else ["x"]
    node = (op, reads, ["y"], {"keepdims": keepdims, **more})
    return graph(node, inputs=inputs, weights=weights)


def reshaped(*target, inputs=(("x", FLOAT, ["batch", 6, 4]),), **attributes):
    return graph(
        ("Reshape", ["x", "s"], ["y"], attributes),
        inputs=inputs,
        weights=[("s", np.asarray(target))],
    )


def quantised(zero):
    return graph(
        ("QuantizeLinear", ["x", "s", "z"], ["q"]),
        ("DequantizeLinear", ["q", "s", "z"], ["y"]),
        weights=[("s", np.float32(0.1)), ("z", zero)],
    )


def two_weights(first, second):
    return graph(
        ("MatMul", ["x", "v"], ["h"]),
        ("MatMul", ["h", "w"], ["y"]),
        inputs=[("x", FLOAT, [2, 32])],
        weights=[("v", first), ("w", second)],
    )


def chained_casts(*kinds, start=FLOAT):
    names = ["x", *(f"c{i}" for i in range(len(kinds) - 1)), "y"]
    nodes = [("Cast", [names[i]], [names[i + 1]], {"to": kind}) for i, kind in enumerate(kinds)]
    return graph(*nodes, inputs=[("x", start, [2])], outputs=[("y", kinds[-1], None)])


SQUARE = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
ARANGE = ("p", np.arange(4))
EINSUM = {"equation": "ab,b->a"}
Q = [("x", FLOAT, [1, 2, 8, 16])]

# rule -> graphs in which it fires, with words of what it says
FIRES = {
    "not-valid": {
        "unknown operator": (graph(("Nonsense", ["x"], ["y"])), "Nonsense"),
        "no such value": (graph(("Exp", ["nowhere"], ["y"])), "nowhere"),
        "shapes that do not fit": (
            graph(("MatMul", ["x", "w"], ["y"]), weights=[("w", np.ones((3, 3), np.float32))]),
            "MatMul_0",
        ),
        "a cycle": (graph(("Exp", ["y"], ["z"]), ("Exp", ["z"], ["y"])), "topologically sorted"),
    },
    "einsum-types": {
        "int64 and float": (
            graph(("Einsum", ["p", "x"], ["y"], {"equation": "b,ab->a"}), weights=[ARANGE]),
            "Einsum of int64 and float32: b,ab->a",
        ),
        "float64": (
            graph(("Einsum", ["x", "w"], ["y"], EINSUM), weights=[("w", np.ones(4))]),
            "Einsum of float32 and float64",
        ),
    },
    "einsum": {
        "of floats": (graph(("Einsum", ["x", "x"], ["y"], {"equation": "ab,ab->a"})), "ab->a")
    },
    "integer-product": {
        "int64 alone": (
            graph(
                ("Einsum", ["i", "p"], ["j"], EINSUM),
                ("Cast", ["j"], ["y"], {"to": FLOAT}),
                inputs=[("i", INT64, [2, 4])],
                weights=[ARANGE],
            ),
            "Einsum of int64: ab,b->a",
        ),
        "of matrices": (
            graph(
                ("MatMul", ["i", "w"], ["j"]),
                ("Cast", ["j"], ["y"], {"to": FLOAT}),
                inputs=[("i", TensorProto.INT32, [2, 4])],
                weights=[("w", np.ones((4, 4), np.int32))],
            ),
            "MatMul of int32",
        ),
    },
    "mixed-float64": {
        "weight": (
            graph(("Mul", ["x", "w"], ["y"]), weights=[("w", np.ones(4))]),
            "Mul of float32 and float64",
        ),
        "a list of inputs": (
            graph(("Concat", ["x", "w"], ["y"], {"axis": 0}), weights=[("w", np.ones((1, 4)))]),
            "Concat of float32 and float64",
        ),
    },
    "bfloat16": {"within": (between_casts("Exp", BFLOAT), "bfloat16 in 2 of 3 nodes")},
    "too-many-axes": {"nine": (reshaped(1, 1, 1, 1, 1, 1, 1, -1, 1), "Reshape that gives 9 axes")},
    "mixed-types": {
        "int64 weight": (
            graph(("Mul", ["x", "p"], ["y"]), weights=[ARANGE]),
            "Mul of float32 and int64",
        ),
        "float16 and float32": (
            graph(("Cast", ["x"], ["h"], {"to": HALF}), ("Add", ["x", "h"], ["y"])),
            "Add of float32 and float16",
        ),
        "a list of inputs": (
            graph(("Concat", ["x", "w"], ["y"], {"axis": 0}), weights=[("w", np.array([[1]]))]),
            "Concat of float32 and int64",
        ),
        "float32 scale": (normed(HALF, np.float32), "LayerNormalization of float16 and float32"),
    },
    "float64": {
        "within": (between_casts("Exp", DOUBLE), "h is float64"),
        "weight": (
            graph(
                ("Cast", ["w"], ["s"], {"to": FLOAT}),
                ("Add", ["x", "s"], ["y"]),
                weights=[("w", np.ones(1))],
            ),
            "w is float64",
        ),
    },
    "int64-arithmetic": {
        "positions": (
            graph(
                ("Mul", ["i", "p"], ["j"]),
                ("Cast", ["j"], ["y"], {"to": FLOAT}),
                inputs=[("i", INT64, [4])],
                weights=[ARANGE],
            ),
            "int64 Mul outside shapes",
        ),
    },
    "float32-attention": {
        "opset 23": (graph(("Attention", ["x", "x", "x"], ["y"]), inputs=Q, opset=23), "Attention"),
        "opset 24": (graph(("Attention", ["x", "x", "x"], ["y"]), inputs=Q, opset=24), "Attention"),
    },
    "unfused-attention": {
        "12 channels": (written_attention(HALF, 12), "a head has 12 channels"),
    },
    "attention": {
        "float16": (
            graph(
                ("Cast", ["x"], ["h"], {"to": HALF}),
                ("Attention", ["h", "h", "h"], ["r"]),
                ("Cast", ["r"], ["y"], {"to": FLOAT}),
                inputs=Q,
                opset=23,
            ),
            "Attention in float16",
        ),
    },
    "not-in-tensorrt": {
        "dynamic int8": (
            graph(
                ("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
                ("DequantizeLinear", ["q", "s", "z"], ["y"]),
            ),
            "is DynamicQuantizeLinear",
        ),
    },
    "custom-operator": {
        "of a runtime": (
            graph(("FastGelu", ["x"], ["y"], {"domain": "com.microsoft"})),
            "FastGelu of com.microsoft",
        ),
    },
    "sequence": {
        "split into a list": (
            graph(
                ("SplitToSequence", ["x", "two"], ["s"], {"axis": 1}),
                ("SequenceAt", ["s", "zero"], ["y"]),
                weights=[("two", np.array(2)), ("zero", np.array(0))],
            ),
            "SequenceAt",
        ),
    },
    "asymmetric-int8": {
        "uint8": (quantised(np.uint8(128)), "to uint8"),
        "int8": (quantised(np.int8(3)), "to int8"),
    },
    "control-flow": {
        "if": (
            graph(
                ("If", ["c"], ["y"], {"then_branch": branch(), "else_branch": branch()}),
                inputs=[("c", BOOL, [])],
            ),
            "is If",
        ),
    },
    "data-dependent-shape": {
        "nonzero": (
            graph(("NonZero", ["x"], ["n"]), ("Cast", ["n"], ["y"], {"to": FLOAT})),
            "is NonZero",
        ),
    },
    "baked-batch": {
        "reshape": (reshaped(12, 4), "Reshape to [12, 4], whatever the batch"),
        "reshape with a rest": (reshaped(2, -1), "Reshape to [2, -1]"),
        "reshape of an axis within": (
            graph(
                ("Transpose", ["x"], ["t"], {"perm": [1, 0]}),
                ("Reshape", ["t", "s"], ["y"]),
                inputs=[FREE],
                weights=[("s", np.array([8]))],
            ),
            "Reshape to [8]",
        ),
        "a class token for two": (
            graph(
                ("Concat", ["cls", "x"], ["y"], {"axis": 1}),
                inputs=[("x", FLOAT, ["batch", 6, 4])],
                weights=[("cls", np.ones((2, 1, 4), np.float32))],
            ),
            "Concat_0 takes no batch but the one it was exported with",
        ),
        "an output that does not follow": (
            graph(("ReduceSum", ["x"], ["y"], {"keepdims": 1}), inputs=[FREE]),
            "y is of shape [1, 1], whatever the batch",
        ),
    },
    "batch-coupled": {
        "axis 0": (reduced("ReduceMean", [0]), "ReduceMean over axis 0, the batch included"),
        "a negative axis": (reduced("ReduceMax", [-2]), "over axis 0"),
        "all axes": (reduced("ReduceMax", None, keepdims=0), "over all axes"),
        "all axes, the batch fixed": (
            reduced("ReduceMax", None, inputs=[X], keepdims=0),
            "over all axes",
        ),
        "behind a reshape that bakes the batch": (
            graph(
                ("Reshape", ["x", "s"], ["r"]),
                ("ReduceMax", ["r"], ["y"]),
                weights=[("s", np.array([2, 2, 2]))],
            ),
            "ReduceMax over all axes",
        ),
        "softmax": (graph(("Softmax", ["x"], ["y"], {"axis": 0}), inputs=[FREE]), "Softmax"),
        "an old softmax, which takes all that follow": (
            graph(("Softmax", ["x"], ["y"], {"axis": 0}), inputs=[FREE], opset=11),
            "Softmax over all axes",
        ),
        "norm": (
            graph(
                ("LayerNormalization", ["x", "w"], ["y"], {"axis": 0}),
                inputs=[FREE],
                weights=[("w", np.ones((1, 4), np.float32))],
            ),
            "LayerNormalization",
        ),
        "batch merged with tokens": (
            graph(
                ("Reshape", ["x", "s"], ["r"]),
                ("ReduceMax", ["r", "a"], ["m"]),
                ("Sub", ["x", "m"], ["y"]),
                inputs=[("x", FLOAT, ["batch", 6, 4])],
                weights=[("s", np.array([-1, 4])), ("a", np.array([0]))],
            ),
            "ReduceMax over axis 0",
        ),
        "a scale of all clips": (
            graph(
                ("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
                ("DequantizeLinear", ["q", "s", "z"], ["y"]),
                inputs=[FREE],
            ),
            "DynamicQuantizeLinear",
        ),
    },
    "float16-not-finite": {
        "infinity": (half_weight([1, np.inf, 1, 1]), "in 1 of 4 places"),
        "not a number": (half_weight([1, np.nan, 1, np.nan]), "in 2 of 4 places"),
    },
    "float16-overflow": {"large": (cast_weight([1, 2, -1e5, 3]), "up to 1e+05")},
    "float16-subnormal": {"tiny": (half_weight([1e-6, 1e-6, -1e-7, 1]), "in 75% of 4 places")},
    "float16-range": {
        "exp": (between_casts("Exp", HALF), "Exp in float16"),
        "softmax": (between_casts("Softmax", HALF), "Softmax in float16"),
        "norm": (normed(HALF, np.float16), "LayerNormalization in float16"),
        "sum": (between_casts("ReduceSum", HALF), "ReduceSum in float16"),
    },
    "repeated-weights": {
        "twice": (two_weights(SQUARE, SQUARE), "is stored 2 times, 4,096 bytes too many: v, w"),
    },
    "cast-pair": {
        "to itself": (chained_casts(FLOAT), "Cast of float32 to itself"),
        "there and back": (
            chained_casts(FLOAT, HALF, start=HALF),
            "Cast back to float16 by way of float32",
        ),
        "bfloat16": (chained_casts(FLOAT, BFLOAT, start=BFLOAT), "by way of float32"),
        "integers": (chained_casts(INT64, TensorProto.INT32, start=TensorProto.INT32), "int64"),
        "int32 in float64": (chained_casts(DOUBLE, TensorProto.INT32, start=TensorProto.INT32), ""),
        "int8 in float16": (chained_casts(HALF, TensorProto.INT8, start=TensorProto.INT8), ""),
        "uint8 in bfloat16": (
            chained_casts(BFLOAT, TensorProto.UINT8, start=TensorProto.UINT8),
            "",
        ),
    },
}
# rule -> graphs close to those, in which it must not fire
QUIET = {
    "not-valid": {
        "another domain": graph(("FastGelu", ["x"], ["y"], {"domain": "com.microsoft"})),
        "output without a shape": graph(("Exp", ["x"], ["y"])),
        "mixed types, which have a rule": FIRES["mixed-types"]["int64 weight"][0],
        "einsum of types, which has a rule": FIRES["einsum-types"]["int64 and float"][0],
    },
    "einsum-types": {
        "floats": FIRES["einsum"]["of floats"][0],
        "integers, which have a rule": FIRES["integer-product"]["int64 alone"][0],
    },
    "integer-product": {
        "floats": FIRES["einsum"]["of floats"][0],
        "elementwise": FIRES["int64-arithmetic"]["positions"][0],
        "of types, which has a rule": FIRES["einsum-types"]["int64 and float"][0],
    },
    "einsum": {
        "product": graph(("MatMul", ["x", "w"], ["y"]), weights=[("w", np.ones((4, 2), "f4"))]),
        "of types, which has a rule": FIRES["einsum-types"]["int64 and float"][0],
    },
    "mixed-float64": {
        "of another kind": FIRES["mixed-types"]["int64 weight"][0],
        "one after the other": between_casts("Exp", DOUBLE),
    },
    "bfloat16": {"float16": between_casts("Exp", HALF)},
    "too-many-axes": {"eight": reshaped(1, 1, 1, 1, 1, 1, 1, -1)},
    "mixed-types": {
        "float64, which has a rule": FIRES["mixed-float64"]["weight"][0],
        "types that may differ": graph(
            ("Where", ["c", "x", "x"], ["y"]), inputs=[X, ("c", BOOL, [2, 4])]
        ),
        "power of integers": graph(("Pow", ["x", "two"], ["y"]), weights=[("two", np.array([2]))]),
        "indices": graph(("Gather", ["x", "p"], ["y"], {"axis": 1}), weights=[ARANGE]),
        "a shape": reshaped(-1, 4),
    },
    "float64": {"float32": graph(("Exp", ["x"], ["y"]))},
    "int64-arithmetic": {
        "a shape put together": graph(
            ("Shape", ["x"], ["s"]),
            ("Gather", ["s", "first"], ["b"]),
            ("Mul", ["b", "four"], ["bf"]),
            ("Concat", ["bf", "rest"], ["t"], {"axis": 0}),
            ("Reshape", ["x", "t"], ["y"]),
            inputs=[FREE],
            weights=[
                ("first", np.array([0])),
                ("four", np.array([4])),
                ("rest", np.array([-1])),
            ],
        ),
        "how an expansion is exported": graph(
            (
                "ConstantOfShape",
                ["rank"],
                ["ones"],
                {"value": helper.make_tensor("v", INT64, [1], [1])},
            ),
            ("Mul", ["ones", "minus"], ["unset"]),
            ("Equal", ["target", "unset"], ["is_unset"]),
            ("Where", ["is_unset", "ones", "target"], ["shape"]),
            ("Expand", ["x", "shape"], ["y"]),
            weights=[
                ("rank", np.array([2])),
                ("minus", np.array(-1)),
                ("target", np.array([2, -1])),
            ],
        ),
        "floats": graph(("Mul", ["x", "x"], ["y"])),
    },
    "float32-attention": {
        "float16, which has a rule": FIRES["attention"]["float16"][0],
        "of a runtime": graph(("Attention", ["x", "x", "x"], ["y"], {"domain": "com.microsoft"})),
    },
    "unfused-attention": {
        "64 channels in float16": written_attention(HALF, 64),
        "float32 throughout": written_attention(FLOAT, 64),
    },
    "attention": {"float32, which has a rule": FIRES["float32-attention"]["opset 23"][0]},
    "not-in-tensorrt": {"static int8": quantised(np.int8(0))},
    "custom-operator": {"standard": graph(("Gelu", ["x"], ["y"]))},
    "sequence": {"split": graph(("Split", ["x"], ["y", "z"], {"axis": 1, "num_outputs": 2}))},
    "asymmetric-int8": {"symmetric": quantised(np.int8(0))},
    "control-flow": {
        "where": graph(("Where", ["c", "x", "x"], ["y"]), inputs=[X, ("c", BOOL, [1])])
    },
    "data-dependent-shape": {
        "top": graph(("TopK", ["x", "k"], ["y", "i"]), weights=[("k", np.array([2]))])
    },
    "baked-batch": {
        "fixed by intention": reshaped(12, 4, inputs=[("x", FLOAT, [2, 6, 4])]),
        "the batch is the rest": reshaped(-1, 4),
        "copied": reshaped(0, 24),
        "an axis in front": reshaped(1, -1, 24),
        "of a weight": graph(
            ("Reshape", ["w", "s"], ["r"]),
            ("Add", ["x", "r"], ["y"]),
            inputs=[FREE],
            weights=[("w", np.ones((2, 2), np.float32)), ("s", np.array([4]))],
        ),
        "a scalar without inputs": graph(
            ("Exp", ["w"], ["y"]), inputs=[], weights=[("w", np.ones(2, "f4"))]
        ),
    },
    "batch-coupled": {
        "one clip": reduced("ReduceMax", None, inputs=[("x", FLOAT, [1, 4])], keepdims=0),
        "another axis": reduced("ReduceMean", [1]),
        "no axes, no reduction": reduced("ReduceSum", None, noop_with_empty_axes=1),
        "a weight": graph(
            ("ReduceMax", ["w"], ["m"]),
            ("Sub", ["x", "m"], ["y"]),
            inputs=[FREE],
            weights=[("w", np.ones((2, 4), np.float32))],
        ),
        "tokens in front of the batch": graph(
            ("Transpose", ["x"], ["t"], {"perm": [1, 0, 2]}),
            ("ReduceMean", ["t", "a"], ["y"]),
            inputs=[("x", FLOAT, ["batch", 6, 4])],
            weights=[("a", np.array([0]))],
        ),
        "the number of clips": graph(
            ("Shape", ["x"], ["s"]),
            ("ReduceProd", ["s"], ["n"], {"keepdims": 0}),
            ("Cast", ["n"], ["f"], {"to": FLOAT}),
            ("Div", ["x", "f"], ["y"]),
            inputs=[FREE],
        ),
        "softmax": graph(("Softmax", ["x"], ["y"]), inputs=[FREE]),
        "old softmax": graph(("Softmax", ["x"], ["y"]), inputs=[FREE], opset=11),
    },
    "float16-not-finite": {"a mask": half_weight([0, -np.inf, 0, -np.inf])},
    "float16-overflow": {"fits": cast_weight([1, 2, -65504, 3])},
    "float16-subnormal": {"one of many": half_weight([1e-6, 1, 1, 0])},
    "float16-range": {
        "float32": graph(("Softmax", ["x"], ["y"])),
        "bfloat16": between_casts("Exp", BFLOAT),
        "a product": between_casts("Mul", HALF, "h"),
    },
    "repeated-weights": {
        "different": two_weights(SQUARE, SQUARE + 1),
        "turned": two_weights(SQUARE, SQUARE.T),
        "small": graph(
            ("Add", ["x", "v"], ["h"]),
            ("Add", ["h", "w"], ["y"]),
            weights=[("v", np.zeros(4, np.float32)), ("w", np.zeros(4, np.float32))],
        ),
    },
    "cast-pair": {
        "rounding": chained_casts(HALF, FLOAT),
        "to a third": chained_casts(FLOAT, BFLOAT, start=HALF),
        "int64 in float64": chained_casts(DOUBLE, INT64, start=INT64),
        "uint64 in float64": chained_casts(DOUBLE, TensorProto.UINT64, start=TensorProto.UINT64),
        "int32 in float32": chained_casts(FLOAT, TensorProto.INT32, start=TensorProto.INT32),
        "uint8 in int8": chained_casts(
            TensorProto.INT8, TensorProto.UINT8, start=TensorProto.UINT8
        ),
        "int8 in float8": chained_casts(
            TensorProto.FLOAT8E5M2, TensorProto.INT8, start=TensorProto.INT8
        ),
        "range of bfloat16": chained_casts(HALF, BFLOAT, start=BFLOAT),
        "of a shape": graph(
            ("Shape", ["x"], ["s"]),
            ("Cast", ["s"], ["t"], {"to": INT64}),
            ("Reshape", ["x", "t"], ["y"]),
        ),
    },
}
# These need a file, or are of a kind of their own.
ELSEWHERE = {"missing-weights"}


def cases(table, width):
    flat = [(rule, name, case) for rule, group in table.items() for name, case in group.items()]
    return pytest.mark.parametrize(
        ("rule", "case"), [(r, c) for r, _, c in flat], ids=[f"{r}: {n}" for r, n, _ in flat]
    )


@cases(FIRES, 2)
def test_a_rule_fires(rule, case):
    model, words = case
    found = [f for f in lint(GraphView(model)) if f.rule == rule]
    assert found
    assert words in "; ".join(f"{f.where} {f.what}" for f in found)
    for finding in found:
        assert finding.severity == RULES[rule].severity
        assert finding.remedy == RULES[rule].remedy
        assert set(finding.runtimes) <= set(RUNTIMES)


@cases(QUIET, 1)
def test_a_rule_does_not_fire(rule, case):
    assert [f for f in lint(GraphView(case)) if f.rule == rule] == []


# Rules on operators of the standard: an operator of a runtime may have the name of one.
OF_THE_STANDARD = (
    *("attention", "float32-attention", "unfused-attention", "not-in-tensorrt", "sequence"),
    *("asymmetric-int8", "control-flow", "data-dependent-shape", "einsum", "einsum-types"),
    *("integer-product", "int64-arithmetic", "float16-overflow", "float16-range", "cast-pair"),
    "batch-coupled",
)


@cases({rule: FIRES[rule] for rule in OF_THE_STANDARD}, 2)
def test_an_operator_of_a_runtime_is_reported_as_custom_alone(rule, case):
    model = onnx.ModelProto()
    model.CopyFrom(case[0])
    for node in model.graph.node:
        node.domain = "com.microsoft"
    found = {finding.rule for finding in lint(GraphView(model))}
    assert "custom-operator" in found
    assert rule not in found


def test_every_rule_is_tested_both_ways():
    assert set(FIRES) | ELSEWHERE == set(RULES)
    assert set(QUIET) | ELSEWHERE == set(RULES)


def test_every_registered_rule_is_in_a_chapter():
    assert set(RULES) == set(REGISTERED)


def test_a_name_is_used_once():
    with pytest.raises(AssertionError, match="not-valid"):
        rule("not-valid", severity="error", remedy="")(RULES["not-valid"].find)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_documents_itself(name):
    documented = RULES[name]
    assert documented.summary.endswith(".")
    assert "\n" not in documented.summary
    assert documented.explanation.endswith(".")
    assert not documented.remedy.endswith(".")


def test_rules_can_be_chosen_and_errors_come_first():
    model, _ = FIRES["mixed-types"]["float16 and float32"]
    noisy = graph(
        ("Cast", ["x"], ["c"], {"to": FLOAT}),
        ("Mul", ["c", "w"], ["y"]),
        weights=[("w", np.ones(4))],
    )
    assert {f.rule for f in lint(GraphView(model), rules=["cast-pair"])} == set()
    severities = [f.severity for f in lint(GraphView(noisy))]
    assert severities == sorted(severities)
    assert set(severities) == {"error", "warning"}


def test_nodes_in_branches_are_checked():
    then = branch()
    then.node.append(helper.make_node("Mul", ["x", "w"], ["b2"], name="inner"))
    then.initializer.append(numpy_helper.from_array(np.ones(4), "w"))
    then.output[0].name = "b2"
    model = graph(
        ("If", ["c"], ["y"], {"then_branch": then, "else_branch": branch()}),
        inputs=[X, ("c", BOOL, [])],
    )
    found = {(f.rule, f.where) for f in lint(GraphView(model))}
    assert {("mixed-float64", "inner"), ("float64", "w"), ("control-flow", "If_0")} <= found


def test_functions_of_a_model_are_checked(tmp_path):
    model = graph(("Twice", ["x"], ["y"], {"domain": "mine"}))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    body = helper.make_node("Einsum", ["a", "a"], ["b"], equation="ab,ab->ab")
    model.functions.append(
        helper.make_function("mine", "Twice", ["a"], ["b"], [body], [helper.make_opsetid("", 20)])
    )
    onnx.save(model, tmp_path / "model.onnx")
    assert [f.rule for f in lint(read_graph(tmp_path / "model.onnx"))] == ["einsum"]


# --- modules, by both exporters of torch


class Positions(nn.Module):
    """The published defect: an einsum of positions, which are int64, and frequencies."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.rand(4))

    def forward(self, x):
        positions = torch.arange(x.shape[1], device=x.device)
        return torch.einsum("i,j->ij", positions, self.frequencies)


class Rotating(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = Positions()
        self.project = nn.Linear(4, 4)

    def forward(self, x):
        return self.project(x) * self.positions(x).sin()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Rotating()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module", params=["dynamo", "legacy"])
def defective(request, tmp_path_factory):
    """A plain export of a model with an einsum of int64 and float32, and how it was exported."""
    path = tmp_path_factory.mktemp("defective") / "model.onnx"
    dynamo = request.param == "dynamo"
    how = {"dynamo": True, "optimize": False, "verbose": False} if dynamo else {"dynamo": False}
    with pytest.warns() if not dynamo else pytest.MonkeyPatch.context():
        torch.onnx.export(Net().eval(), (torch.rand(2, 3, 4),), path, input_names=["x"], **how)
    return path


@pytest.mark.filterwarnings("ignore")
def test_an_einsum_of_int64_is_reported_with_its_module(defective):
    found = lint(read_graph(defective))
    (einsum,) = [f for f in found if f.rule == "einsum-types"]
    assert einsum.module == "blocks.0.positions"
    assert "Einsum of int64 and float32" in einsum.what
    assert einsum.severity == "error"
    assert [f.rule for f in found if f.rule in ("not-valid", "einsum")] == []


# --- our own exports


def export_plainly(path, attn, precision, batch=None):
    sizes = {"depth": 2, "dim": 32, "dim_head": 16, "frames": 3, "res": (32, 48)}
    spec = ExportSpec(attn=attn, precision=precision, dynamic_batch=batch, **sizes)
    rewritten = rewrite_for_export(spec, load_model(spec))
    clip = torch.zeros(1, 3, 3, 32, 48)
    model = in_precision(rewritten, precision)
    export_onnx(model, {"video": clip}, path, opset=spec.graph_opset, dynamic_batch=batch)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("attn", ["fastformer", "performer", "regular"])
def test_our_own_exports_are_clean(tmp_path, attn, precision):
    path = export_plainly(tmp_path / "model.onnx", attn, precision)
    assert lint(read_graph(path)) == ()


# --- files of any kind


def save_apart(tmp_path):
    """A graph whose weights are in another file."""
    model = two_weights(SQUARE, SQUARE + 1)
    onnx.save(
        model,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    return tmp_path / "model.onnx"


def test_weights_in_another_file_are_read(tmp_path):
    assert lint(read_graph(save_apart(tmp_path))) == ()


def test_missing_weights_are_reported(tmp_path):
    path = save_apart(tmp_path)
    (tmp_path / "w.bin").unlink()
    (finding,) = lint(read_graph(path))
    assert (finding.rule, finding.severity) == ("missing-weights", "error")
    assert "lacks 2 weights kept in w.bin" in finding.what


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\x08\x07", b"text\n" * 1000],
    ids=["empty", "word", "bare", "text"],
)
def test_a_file_without_a_graph_is_refused(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(GraphInputError, match="not an ONNX file"):
        read_graph(tmp_path / "model.onnx")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(GraphInputError, match="No such file"):
        read_graph(tmp_path / "model.onnx")


# --- the command


@pytest.fixture
def run(tmp_path, capfd):
    """Lint a model on the command line; gives code, stdout and stderr."""

    def call(model, *arguments):
        onnx.save(model, tmp_path / "model.onnx")
        capfd.readouterr()
        code = cli.main(["lint", str(tmp_path / "model.onnx"), *arguments])
        return code, *capfd.readouterr()

    return call


@pytest.mark.slow
def test_the_command_says_what_where_and_what_to_do(run):
    code, out, err = run(FIRES["mixed-types"]["int64 weight"][0])
    assert code == 4
    assert "error mixed-types (1), on ONNX Runtime and TensorRT" in out
    assert "Mul_0 is Mul of float32 and int64" in out
    assert RULES["mixed-types"].remedy[:30] in out
    assert err.startswith("tsformer: lint: ")
    assert err.count("\n") == 1
    assert "1 error, 0 warnings" in err
    assert max(map(len, out.splitlines())) <= 80


def test_warnings_are_no_failure(run):
    code, out, err = run(FIRES["einsum"]["of floats"][0])
    assert (code, err) == (0, "")
    assert "0 errors, 1 warning" in out


@pytest.mark.parametrize(
    ("options", "judged"),
    [
        ((), "ONNX Runtime or TensorRT"),
        (("--runtime", "onnxruntime"), "ONNX Runtime"),
        (("--runtime", "tensorrt"), "TensorRT"),
    ],
)
def test_the_command_says_on_which_runtimes_a_graph_is_clean(run, options, judged):
    found = run(graph(("Exp", ["x"], ["y"])), *options)[:2]
    assert found == (0, f"Nothing that would hurt on {judged}.\n")


@pytest.mark.slow
def test_the_command_applies_the_rules_of_one_runtime(run):
    model = quantised(np.uint8(128))
    assert run(model, "--runtime", "tensorrt")[0] == 4
    assert run(model, "--runtime", "onnxruntime")[0] == 0
    code, _, err = run(model, "--runtime", "openvino")
    assert code == 2
    assert "one of all, " in err


@pytest.mark.slow
def test_json_holds_every_finding(run):
    twelve = graph(
        *(
            (
                "Einsum",
                [f"x{i}" if i else "x"] * 2,
                [f"x{i + 1}" if i < 11 else "y"],
                {"equation": "ab,ab->ab"},
            )
            for i in range(12)
        )
    )
    _, out, _ = run(twelve)
    assert "and 7 more" in out
    code, out, _ = run(twelve, "--json")
    findings = json.loads(out)["findings"]
    assert (code, len(findings)) == (0, 12)
    assert findings[0].keys() == {
        "rule",
        "severity",
        "runtimes",
        "where",
        "what",
        "module",
        "nodes",
        "remedy",
    }


@pytest.mark.slow
def test_names_of_the_graph_cannot_steer_the_terminal(run):
    model = graph(("Mul", ["x", "w"], ["y"]), weights=[("w", np.ones(4))])
    model.graph.node[0].name = "\x1b[31mred[bold]"
    _, out, _ = run(model)
    assert "\x1b" not in out
    assert "[31mred[bold]" in out


def test_a_file_that_is_no_graph_is_an_input_error(tmp_path, capfd):
    (tmp_path / "model.onnx").write_bytes(b"garbage")
    assert cli.main(["lint", str(tmp_path / "model.onnx")]) == 3
    assert "not an ONNX file" in capfd.readouterr().err


@pytest.mark.slow
def test_a_directory_of_an_export_is_linted_by_its_graph(exported, capfd):
    assert cli.main(["lint", str(exported("regular").directory)]) == 0
    assert "Nothing that would hurt" in capfd.readouterr().out


def test_counts_are_words():
    assert count_line(lint(GraphView(graph(("Exp", ["x"], ["y"]))))) == "0 errors, 0 warnings"


@pytest.mark.slow
def test_it_imports_no_torch_and_no_runtime(tmp_path):
    onnx.save(graph(("Exp", ["x"], ["y"])), tmp_path / "model.onnx")
    code = (
        "import sys; from exporter.cli import main\n"
        f"assert main(['lint', {str(tmp_path / 'model.onnx')!r}]) == 0\n"
        "print(*sorted({'torch', 'onnxruntime', 'av', 'tensorrt_rtx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
