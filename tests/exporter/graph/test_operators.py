"""Test that operators that cut, choose or round are named unless the model has them."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.operators import foreign_operators


def graph(*nodes, **arrays):
    """Make a graph from `x` to `y` of nodes `(op, inputs, output)`."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
    made = [helper.make_node(op, given, [out]) for op, given, out in nodes]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    return helper.make_model(helper.make_graph(made, "g", [x], [y], weights))


@pytest.mark.parametrize("op", ["Abs", "CastLike", "Clip", "Dropout", "Max", "Round", "Less"])
def test_an_operator_that_no_model_has_is_named(op):
    model = graph((op, ["x"], "c"), ("Identity", ["c"], "y"))
    assert foreign_operators(model, {}, int8=False) == (f"{op} c",)


@pytest.mark.parametrize("to", [TensorProto.INT32, TensorProto.UINT8, TensorProto.BOOL])
def test_a_cast_to_whole_numbers_or_conditions_is_named(to):
    model = graph(("Cast", ["x"], "c"), ("Cast", ["c"], "y"))
    for node, dtype in zip(model.graph.node, (to, TensorProto.FLOAT), strict=True):
        node.attribute.append(helper.make_attribute("to", dtype))
    assert foreign_operators(model, {}, int8=False) == ("Cast c",)


def test_smooth_operators_are_not_named():
    model = graph(("Softmax", ["x"], "a"), ("Gelu", ["a"], "b"), ("MatMul", ["b", "w"], "y"))
    assert foreign_operators(model, {}, int8=False) == ()


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("Where", "where"),
        ("ReduceMax", "amax"),
        ("Relu", "relu"),
        ("Selu", "selu"),
        ("Div", "div"),
        ("Log", "log"),
        ("Neg", "neg"),
        ("Reciprocal", "rsqrt"),
        ("Sqrt", "sqrt"),
        ("Sub", "sub"),
    ],
)
def test_an_operator_is_named_where_there_are_more_than_the_model_has(op, function):
    model = graph((op, ["x"], "a"), (op, ["a"], "y"))
    assert foreign_operators(model, {function: 2}, int8=False) == ()
    assert foreign_operators(model, {function: 1}, int8=False) == (f"{op} y",)
    assert foreign_operators(model, {}, int8=False) == (f"{op} a", f"{op} y")


def test_a_step_that_takes_back_another_is_named():
    model = graph(("Add", ["x", "w"], "a"), ("Sub", ["a", "w"], "y"), w=np.ones(4, np.float32))
    assert foreign_operators(model, {"add": 1}, int8=False) == ("Sub y",)


def test_a_graph_may_write_each_gelu_with_a_quotient():
    model = graph(("Div", ["x", "r"], "a"), ("Erf", ["a"], "y"), r=np.float32(2**0.5))
    assert foreign_operators(model, {"gelu": 1}, int8=False) == ()
    model.graph.node.append(helper.make_node("Gelu", ["x"], ["z"]))
    assert foreign_operators(model, {"gelu": 2}, int8=False) == ("Div a",)


@pytest.mark.parametrize("op", ["Sub", "Sqrt", "Div"])
def test_a_graph_of_a_low_opset_may_write_each_norm_as_its_equation(op):
    model = graph((op, ["x", "w"][: 1 if op == "Sqrt" else 2], "y"), w=np.ones(4, np.float32))
    assert foreign_operators(model, {"layer_norm": 1}, int8=False) == ()
    model.graph.node.append(helper.make_node("LayerNormalization", ["x", "w"], ["z"]))
    assert foreign_operators(model, {"layer_norm": 2}, int8=False) == (f"{op} y",)


def test_what_depends_on_the_shape_or_on_weights_alone_is_not_named():
    nodes = [
        ("Shape", ["x"], "s"),
        ("Equal", ["s", "n"], "e"),
        ("Abs", ["w"], "a"),
        ("Add", ["x", "a"], "y"),
    ]
    assert foreign_operators(graph(*nodes, n=[2, 4], w=np.ones(4)), {}, int8=False) == ()


def test_another_domain_is_named():
    model = graph(("Gelu", ["x"], "y"))
    model.graph.node[0].domain = "own"
    assert foreign_operators(model, {}, int8=False) == ("Gelu y",)


def test_a_branch_is_named_whatever_its_condition():
    model = graph(("Identity", ["x"], "y"), c=True)
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [])
    branch = helper.make_node("If", ["c"], ["i"], then_branch=inner, else_branch=inner)
    model.graph.node.append(branch)
    assert foreign_operators(model, {}, int8=False) == ("If i",)


def rounded(reader):
    """Round `x` to 8 bits, and let `reader` take it."""
    return graph(
        ("QuantizeLinear", ["x", "s", "z"], "q"),
        ("DequantizeLinear", ["q", "s", "z"], "d"),
        ("DequantizeLinear", ["l", "s", "z"], "w"),
        *reader,
        s=np.float32(0.1),
        z=np.int8(0),
        l=np.ones((4, 4), np.int8),
    )


PRODUCT = ("MatMul", ["d", "w"], "p")


def test_a_value_of_8_bits_is_for_a_product_with_a_stored_weight():
    assert foreign_operators(rounded([PRODUCT]), {}, int8=True) == ()
    assert foreign_operators(rounded([PRODUCT]), {}, int8=False) == ("QuantizeLinear q",)


@pytest.mark.parametrize(
    "reader",
    [
        [("Add", ["d", "x"], "y")],
        [("MatMul", ["d", "x"], "y")],
        [("MatMul", ["x", "d"], "y")],
        [PRODUCT, ("Add", ["p", "d"], "y")],
        [("Add", ["q", "q"], "y")],
    ],
)
def test_a_value_of_8_bits_that_another_step_takes_is_named(reader):
    assert foreign_operators(rounded(reader), {}, int8=True) == ("QuantizeLinear q",)
