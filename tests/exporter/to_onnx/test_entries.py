"""Test that entries of an axis are taken in two steps, with the same values."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporter.to_onnx.entries import take_in_two_steps


def graph(axis, index, shape):
    """Make a graph `y = x[..., index, ...]`; a list of indices keeps the axis."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abc"))
    node = helper.make_node("Gather", ["x", "i"], ["y"], axis=axis)
    node.metadata_props.add(key="module", value="blocks.0")
    indices = numpy_helper.from_array(np.array(index, np.int64), "i")
    made = helper.make_graph([node], "g", [x], [y], [indices])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("axis", [0, 2, -1])
@pytest.mark.parametrize("index", [0, -1])
def test_an_entry_is_the_same_and_its_axis_is_removed_after(axis, index):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    model = graph(axis, index, x.shape)
    take_in_two_steps(model.graph)
    assert [node.op_type for node in model.graph.node] == ["Gather", "Squeeze"]
    assert [node.metadata_props[0].value for node in model.graph.node] == ["blocks.0"] * 2
    assert "i" not in [one.name for one in model.graph.initializer]
    onnx.checker.check_model(model, full_check=True)
    (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(found, x.take(index, axis))


def test_a_list_of_entries_stays_as_it_is():
    model = graph(1, [2, 0], (2, 3, 4))
    before = model.SerializeToString()
    take_in_two_steps(model.graph)
    assert model.SerializeToString() == before
