"""Test that the scales of an int8 graph are compared with the activations of the calibration."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.proof.scales import wrong_scales

# Values of -1 to 2, and of -2 to 4 after the second product. One of a clip is the largest.
CLIPS = {"video": np.linspace(-1, 2, 12 * 4, dtype=np.float32).reshape(12, 4)[::-1].copy()}
STEP = 3 / 255


def quantised(first=STEP, second=2 * STEP, batch=4):
    """Make two products, the second of twice the first, with values rounded to 8 bits."""
    constants = {
        "first_scale": np.float32(first),
        "second_scale": np.float32(second),
        "zero": np.uint8(85),
        "identity": np.eye(4, dtype=np.float32),
        "twice": 2 * np.eye(4, dtype=np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["video", "first_scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "first_scale", "zero"], ["b"]),
        helper.make_node("MatMul", ["b", "twice"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "second_scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["d", "second_scale", "zero"], ["e"]),
        helper.make_node("MatMul", ["e", "identity"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4])
        for name in ("video", "logits")
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("batch", [1, 4, 5, "b"])
def test_right_scales_are_no_finding_at_any_batch(batch):
    assert wrong_scales(quantised(batch=batch), CLIPS) == ()


@pytest.mark.parametrize("factor", [1.3, 3.0])
def test_a_scale_that_only_rounds_a_little_more_is_left_to_the_floor(factor):
    assert wrong_scales(quantised(second=2 * STEP * factor), CLIPS) == ()


@pytest.mark.parametrize("factor", [0.25, 0.5])
def test_a_scale_that_clips_is_named(factor):
    assert wrong_scales(quantised(second=2 * STEP * factor), CLIPS) == ("second_scale",)


def test_a_graph_without_rounding_has_no_scale():
    graph = quantised()
    del graph.graph.node[:]
    graph.graph.node.append(helper.make_node("MatMul", ["video", "twice"], ["logits"]))
    onnx.checker.check_model(graph)
    assert wrong_scales(graph, CLIPS) == ()
