"""Test that the hash of nodes is that of what a graph computes, and of nothing else."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.nodes import hash_nodes


def made(kind=TensorProto.FLOAT, **attributes):
    x, y = (helper.make_tensor_value_info(name, kind, ["n", 4]) for name in "xy")
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [y])
    nodes = [
        helper.make_node("Softmax", ["x"], ["a"], **{"axis": 1, **attributes}),
        helper.make_node("If", ["c"], ["b"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["d"], value=numpy_helper.from_array(np.ones(2, "f"))),
        helper.make_node("Gemm", ["a", "w"], ["y"], alpha=0.5, transB=1),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.eye(4), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_notes_names_and_weights_are_left_out():
    one, other = made(), made()
    other.graph.node[0].name = "first"
    other.graph.node[0].doc_string = other.graph.doc_string = "a note"
    other.graph.node[0].metadata_props.add(key="module", value="head")
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(3), "w"))
    other.graph.node[3].attribute.reverse()
    other.producer_name = "somebody"
    assert hash_nodes(other) == hash_nodes(one)


def other_input(model):
    model.graph.node[3].input[1] = "x"


def other_output(model):
    model.graph.node[3].output[0] = "z"


def other_value_of_the_graph(model):
    model.graph.output[0].name = "a"


def other_domain(model):
    model.graph.node[0].domain = "com.microsoft"


def other_attribute(model):
    model.graph.node[3].attribute[0].f = 0.25


def other_constant(model):
    model.graph.node[2].attribute[0].t.CopyFrom(numpy_helper.from_array(np.zeros(2, "f")))


def other_branch(model):
    model.graph.node[1].attribute[0].g.node[0].op_type = "Neg"


def other_opset(model):
    model.opset_import[0].version = 21


def other_order(model):
    model.graph.node[0].attribute[0].i = -1


def another_function(model):
    step = helper.make_node("Neg", ["a"], ["b"])
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("own", "Softmax", ["a"], ["b"], [step], opset))


def a_sparse_constant(model):
    values, places = np.ones(1, "f"), np.zeros(1, np.int64)
    pair = numpy_helper.from_array(values, "s"), numpy_helper.from_array(places, "i")
    node = helper.make_node(
        "Constant", [], ["d"], sparse_value=helper.make_sparse_tensor(*pair, [2])
    )
    model.graph.node[2].CopyFrom(node)


def a_sparse_weight(model):
    values, places = np.ones(1, "f"), np.zeros(1, np.int64)
    pair = numpy_helper.from_array(values, "s"), numpy_helper.from_array(places, "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(*pair, [4]))


@pytest.mark.parametrize(
    "change",
    [
        other_input,
        other_output,
        other_value_of_the_graph,
        other_domain,
        other_attribute,
        other_constant,
        other_branch,
        other_opset,
        other_order,
        another_function,
        a_sparse_constant,
        a_sparse_weight,
    ],
)
def test_whatever_a_graph_computes_is_hashed(change):
    model = made()
    change(model)
    assert hash_nodes(model) != hash_nodes(made())


def test_the_types_of_inputs_and_outputs_are_hashed():
    assert hash_nodes(made(TensorProto.FLOAT16)) != hash_nodes(made())


def test_the_hash_survives_the_file(tmp_path):
    onnx.save(made(), tmp_path / "model.onnx")
    assert hash_nodes(onnx.load(tmp_path / "model.onnx")) == hash_nodes(made())


def test_the_opset_of_a_function_and_the_value_in_a_sparse_constant_are_hashed():
    models = made(), made()
    for model in models:
        another_function(model)
        a_sparse_constant(model)
    models[1].functions[0].opset_import[0].version = 21
    assert hash_nodes(models[0]) != hash_nodes(models[1])
    models[1].functions[0].opset_import[0].version = 20
    assert hash_nodes(models[0]) == hash_nodes(models[1])
    values = models[1].graph.node[2].attribute[0].sparse_tensor.values
    values.CopyFrom(numpy_helper.from_array(2 * np.ones(1, "f"), "s"))
    assert hash_nodes(models[0]) != hash_nodes(models[1])


def test_texts_are_hashed_by_their_letters():
    text = helper.make_tensor("t", TensorProto.STRING, [1], [b"one"])
    models = made(), made()
    for model in models:
        model.graph.node.append(helper.make_node("Constant", [], ["e"], value=text))
    assert hash_nodes(models[0]) == hash_nodes(models[1])
