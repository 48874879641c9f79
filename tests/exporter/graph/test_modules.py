"""Which values leave which modules: on graphs made by hand, and on a real one."""

import json

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from exporter.graph.modules import (
    find_module_outputs,
    innermost_module,
    modules_of_values,
    read_module_outputs,
    write_module_outputs,
)
from exporter.load import load_model
from exporter.spec import ExportSpec
from exporter.to_onnx.export import export_onnx
from model.precision import rounded_modules


def node(op, inputs, output, *scopes):
    made = helper.make_node(op, inputs, [output])
    made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(["", *scopes, "op"]))
    return made


def model_of(*nodes, output="y"):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "made",
        [value("x", TensorProto.FLOAT, [2])],
        [value(output, TensorProto.FLOAT, [2])],
    )
    return helper.make_model(graph)


def test_a_value_read_outside_is_an_output_of_its_module():
    model = model_of(
        node("Abs", ["x"], "a", "m"), node("Neg", ["a"], "b", "m"), node("Exp", ["b"], "y")
    )
    assert find_module_outputs(model.graph) == {"m": ["b"]}


def test_a_node_that_torch_gives_no_module_is_in_that_of_its_reader():
    """As the size of a free batch."""
    size = helper.make_node("Shape", ["x"], ["s"])
    scopes = repr(["_empty_nn_module_stack_from_metadata_hook", "sym_size_int_1"])
    size.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    model = model_of(size, node("Neg", ["s"], "y", "m"))
    assert innermost_module(size) is None
    assert modules_of_values(model, model.graph.node) == {"s": "m", "y": "m"}


def test_a_value_can_be_an_output_of_several_modules():
    model = model_of(
        node("Abs", ["x"], "a", "m", "m.n"),
        node("Neg", ["a"], "b", "m"),
        node("Neg", ["b"], "c", "k"),
        node("Exp", ["c"], "y"),
    )
    assert find_module_outputs(model.graph) == {"m.n": ["a"], "m": ["b"], "k": ["c"]}


def test_a_value_read_inside_and_outside_is_an_output():
    model = model_of(
        node("Abs", ["x"], "a", "m"), node("Neg", ["a"], "b", "m"), node("Add", ["a", "b"], "y")
    )
    assert find_module_outputs(model.graph) == {"m": ["a", "b"]}


def test_the_output_of_the_graph_is_an_output_of_its_module():
    model = model_of(node("Abs", ["x"], "y", "head"))
    assert find_module_outputs(model.graph) == {"head": ["y"]}


def test_a_value_that_no_node_reads_is_no_output():
    model = model_of(node("Abs", ["x"], "unread", "m"), node("Neg", ["x"], "y"))
    assert find_module_outputs(model.graph) == {}


def test_nodes_without_notes_belong_to_no_module():
    model = model_of(helper.make_node("Abs", ["x"], ["y"]))
    assert find_module_outputs(model.graph) == {}


def test_the_map_survives_without_notes_and_lists_no_removed_value():
    model = model_of(
        node("Abs", ["x"], "a", "m"), node("Neg", ["a"], "b", "n"), node("Exp", ["b"], "y")
    )
    write_module_outputs(model)
    for entry in model.graph.node:
        del entry.metadata_props[:]
    assert read_module_outputs(model) == {"m": ["a"], "n": ["b"]}
    model.graph.node[1].output[0] = model.graph.node[2].input[0] = "renamed"
    assert read_module_outputs(model) == {"m": ["a"], "n": []}


def test_a_model_without_a_map_has_an_empty_one():
    assert read_module_outputs(model_of(node("Abs", ["x"], "y", "m"))) == {}


@pytest.fixture(scope="module")
def real(tmp_path_factory, slow):
    spec = ExportSpec(attn="regular", depth=2, dim=32, dim_head=16, frames=3, res=(32, 48))
    model = load_model(spec)
    path = tmp_path_factory.mktemp("map") / "model.onnx"
    export_onnx(model, {"video": torch.zeros(1, 3, 3, 32, 48)}, path, opset=20)
    return model, onnx.load(path)


@pytest.mark.slow
def test_the_map_of_a_real_graph_names_existing_modules_and_values(real):
    model, proto = real
    outputs = read_module_outputs(proto)
    made = {name for node in proto.graph.node for name in node.output}
    assert set(outputs) <= {path for path, _ in model.named_modules()}
    assert set(outputs) >= {*rounded_modules(model), "blocks.0", "blocks.0.mlp.norm", "to_out.fn"}
    assert outputs["to_out.fn"] == ["logits"]
    for path, names in outputs.items():
        assert names, path
        assert set(names) <= made


@pytest.mark.slow
def test_every_linear_layer_gives_what_it_is_read_for(real):
    """The value of `fc_t` is read by the sum with the tokens: checked by its shape."""
    _, proto = real
    inferred = onnx.shape_inference.infer_shapes(proto).graph.value_info
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    (name,) = read_module_outputs(proto)["blocks.0.fc_t"]
    assert shapes[name] == [1, 3 * 2 * 3, 32]
    cls, patches = sorted(read_module_outputs(proto)["blocks.0"], key=lambda n: shapes[n][1])
    assert (shapes[cls], shapes[patches]) == ([1, 1, 32], [1, 18, 32])


def test_the_map_is_written_the_same_each_time(real):
    _, proto = real
    (text,) = (e.value for e in proto.metadata_props if e.key == "tsformer.modules")
    again = onnx.ModelProto()
    again.CopyFrom(proto)
    del again.metadata_props[:]
    write_module_outputs(again)
    assert again.metadata_props[0].value == text
    assert list(json.loads(text)) == sorted(json.loads(text))
