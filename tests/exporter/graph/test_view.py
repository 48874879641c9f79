"""What is told of a graph of any origin, and what is left open without an exception."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.file import read_graph
from exporter.graph.modules import innermost_module
from exporter.graph.view import (
    PROBE_BATCH,
    GraphView,
    attribute,
    dtype_name,
    graph_tensor,
    without_weights,
)

FLOAT = TensorProto.FLOAT


def model_of(*nodes, shape=("batch", 4), weights=()):
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def view_of(*nodes, **more):
    return GraphView(model_of(*nodes, **more))


def node(op, inputs, output, name="", scopes=None, **attributes):
    made = helper.make_node(op, inputs, [output], name=name, **attributes)
    if scopes is not None:
        made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    return made


BIG = np.ones((4, 2000), np.float32)


def test_values_have_types_and_shapes():
    view = view_of(node("MatMul", ["x", "w"], "h"), node("Exp", ["h"], "y"), weights=[("w", BIG)])
    assert view.values["x"] == (FLOAT, ("batch", 4))
    assert view.values["h"] == (FLOAT, ("batch", 2000))
    assert view.values["w"] == (FLOAT, (4, 2000))
    assert view.kind("nowhere") == 0
    assert view.contradiction == ""


def test_shapes_are_inferred_at_another_batch_too():
    view = view_of(node("MatMul", ["x", "w"], "y"), weights=[("w", BIG)])
    assert view.batch == ("batch",)
    assert view.values_at_probe["y"].shape == (PROBE_BATCH, 2000)
    fixed = view_of(node("Exp", ["x"], "y"), shape=(3, 4))
    assert fixed.batch == (3,)
    assert fixed.values_at_probe["y"].shape == (PROBE_BATCH, 4)
    assert view_of(node("Exp", ["x"], "y"), shape=()).batch is None


def test_a_graph_that_contradicts_itself_still_has_types():
    view = view_of(
        node("Mul", ["x", "w"], "h", name="mixed"),
        node("Exp", ["h"], "y"),
        weights=[("w", np.ones(4))],
    )
    assert "mixed" in view.contradiction
    assert view.kind("y") == FLOAT


def test_large_weights_become_inputs():
    light = without_weights(
        model_of(node("MatMul", ["x", "w"], "y"), weights=[("w", BIG), ("s", np.ones(2))])
    )
    assert [value.name for value in light.graph.input] == ["x", "w"]
    assert [weight.name for weight in light.graph.initializer] == ["s"]


def test_constants_are_weights_and_what_constant_nodes_give():
    value = numpy_helper.from_array(np.arange(3.0))
    view = view_of(
        helper.make_node("Constant", [], ["c"], value=value),
        node("Exp", ["x"], "y"),
        weights=[("w", np.ones(2))],
    )
    assert view.array("c").tolist() == [0, 1, 2]
    assert view.array("w").tolist() == [1, 1]
    assert view.array("x") is None
    view.constants["w"].raw_data = b"short"
    assert view.array("w") is None


def test_the_maker_and_the_readers_of_a_value_are_known():
    view = view_of(node("Exp", ["x"], "h"), node("Mul", ["x", "h"], "y"))
    assert view.producers["h"].op_type == "Exp"
    assert [(r.node.op_type, r.position) for r in view.readers["x"]] == [("Exp", 0), ("Mul", 0)]


@pytest.mark.parametrize(
    ("name", "scopes", "path"),
    [
        ("", "['', 'blocks.0', 'blocks.0.attn', 'einsum']", "blocks.0.attn"),
        ("", "['', 'einsum']", ""),
        ("/blocks.0/attn/Einsum_1", None, "blocks.0.attn"),
        ("/Einsum", None, ""),
        ("node_1", None, None),
        ("node_1", "['einsum']", None),
        ("node_1", "no list", None),
        ("node_1", "{'a': 1}", None),
        ("node_1", "[" * 5000, None),
    ],
)
def test_the_module_of_a_node(name, scopes, path):
    assert innermost_module(node("Exp", ["x"], "y", name=name, scopes=scopes)) == path


def test_a_node_without_notes_has_the_module_of_the_next_node_with_notes():
    told = node("Exp", ["b"], "y", scopes="['', 'm', 'exp']")
    view = view_of(node("Exp", ["x"], "a"), node("Neg", ["a"], "b"), told)
    assert [view.module(n) for n in view.nodes] == ["m", "m", "m"]


def test_the_content_of_a_long_list_is_not_followed():
    long = ("s", np.array([2**27]))  # ONNX would hold each number of the sum as an object
    sum_of_lists = node("Add", ["z", "z"], "y")
    view = view_of(node("ConstantOfShape", ["s"], "z"), sum_of_lists, weights=[long])
    assert view.values["y"].shape == (2**27,)
    assert view.values_at_probe["y"].shape == (2**27,)
    assert view.contradiction == view.contradiction_at_probe == ""


EXP = node("Exp", ["x"], "y")
OF_A_SHAPE = (node("Shape", ["x"], "s"), node("Reshape", ["x", "s"], "y"))
BRANCH = helper.make_graph(
    [node("Shape", ["x"], "s"), node("Reshape", ["x", "s"], "b")],
    "branch",
    [],
    [helper.make_tensor_value_info("b", FLOAT, None)],
)
CHOICE = node("If", ["c"], "y", then_branch=BRANCH, else_branch=BRANCH)


@pytest.mark.parametrize(
    ("nodes", "passes"), [((EXP,), 1), (OF_A_SHAPE, 2), ((CHOICE,), 2)], ids=["no", "yes", "branch"]
)
def test_lists_are_followed_only_where_nodes_make_some(nodes, passes, monkeypatch):
    calls, infer_shapes = [], onnx.shape_inference.infer_shapes

    def count(*given, **options):
        calls.append(options)
        return infer_shapes(*given, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", count)
    view = view_of(*nodes, shape=(3, 4), weights=[("c", np.array(True))])
    assert view.values["y"].shape == (3, 4)
    assert len(calls) == passes


def test_without_a_later_note_a_node_has_the_module_of_an_earlier_node():
    view = view_of(node("Exp", ["x"], "h", scopes="['', 'm', 'exp']"), node("Neg", ["h"], "y"))
    assert [view.module(n) for n in view.nodes] == ["m", "m"]


def test_without_any_note_the_module_is_unknown():
    view = view_of(node("Exp", ["x"], "y"))
    assert [view.module(n) for n in view.nodes] == [None]


def test_exported_graphs_note_the_outputs_of_modules():
    model = model_of(node("Exp", ["x"], "a"), node("Neg", ["a"], "b"), node("Abs", ["b"], "y"))
    noted = {"m": ["b"], "m.inner": ["a", "b"], "k": ["y"]}
    model.metadata_props.add(key="tsformer.modules", value=json.dumps(noted))
    view = GraphView(model)
    assert [view.module(n) for n in view.nodes] == ["m.inner", "m.inner", "k"]


@pytest.mark.parametrize("note", ["{", "[]", "3", '{"m": 3}', '{"m": [[]]}'])
def test_a_note_of_another_program_is_ignored(note):
    model = model_of(node("Exp", ["x"], "y"))
    model.metadata_props.add(key="tsformer.modules", value=note)
    assert GraphView(model).module(model.graph.node[0]) is None


def test_an_axis_is_a_number_a_name_or_unknown():
    value = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [2, "n", None])
    tensor = graph_tensor(value)
    assert (tensor.dtype, tensor.shape) == ("bfloat16", (2, "n", None))
    assert graph_tensor(helper.make_tensor_value_info("x", FLOAT, None)).shape == ()


def test_types_have_the_names_of_numpy():
    kinds = (FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, 0, 999)
    names = ["float32", "float64", "float16", "int64", "undefined", "type 999"]
    assert [dtype_name(kind) for kind in kinds] == names


def test_attributes_have_defaults():
    made = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    assert attribute(made, "axis") == 1
    assert attribute(made, "other", 7) == 7


def test_the_standard_domain_has_one_name(tmp_path):
    model = model_of(node("Exp", ["x"], "y"))
    model.opset_import[0].domain = "ai.onnx"
    onnx.save(model, tmp_path / "model.onnx")
    assert read_graph(tmp_path / "model.onnx").opsets == {"": 20}
