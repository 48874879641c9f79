"""Test that small fp16 weights are not rounded to zero."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter import ExportSpec
from exporter.pipeline import export
from exporter.to_onnx.small_steps import set_small_steps

# (i, o): channels of 0, of small, of smaller and of large weights.
WEIGHT = np.array([[0, 3e-4, -1e-6, 0.5], [0, -5e-4, 2e-6, -0.25]])


def quantised(dtype):
    """Quantise as ONNX Runtime does: a step of 1 where the right one is no normal number."""
    weight = WEIGHT.astype(dtype)
    steps = (np.abs(weight).max(0).astype(float) / 127).astype(dtype)
    steps[steps < np.finfo(dtype).tiny] = 1
    arrays = {
        "w_quantized": np.round(weight / steps.astype(float)).astype(np.int8),
        "w_scale": steps,
        "w_zero_point": np.zeros(4, np.int8),
    }
    node = helper.make_node("DequantizeLinear", list(arrays), ["w_restored"], axis=1)

    def graph(nodes, given):
        weights = [numpy_helper.from_array(array, name) for name, array in given.items()]
        return helper.make_graph(nodes, "g", [], [], weights)

    return graph([node], arrays), graph([], {"w": weight})


def arrays(graph):
    return {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}


def test_each_channel_of_small_weights_has_its_own_step():
    made, graph = quantised(np.float16)
    before = arrays(made)
    assert (before["w_quantized"][:, :3] == 0).all()
    set_small_steps(made, graph)
    after = arrays(made)
    steps = after["w_scale"].astype(float)
    weight = arrays(graph)["w"].astype(float)
    error = np.abs(after["w_quantized"] * steps - weight)
    assert (error <= 0.5 * steps).all()
    assert np.abs(after["w_quantized"][:, 1]).max() >= 63
    np.testing.assert_array_equal(error[:, 2], 0)  # its step is the least one of fp16
    for part in ("w_quantized", "w_scale"):
        assert after[part].dtype == before[part].dtype
        np.testing.assert_array_equal(after[part][..., [0, 3]], before[part][..., [0, 3]])


def test_float32_weights_stay_as_they_are():
    made, graph = quantised(np.float32)
    before = made.SerializeToString()
    set_small_steps(made, graph)
    assert made.SerializeToString() == before


@pytest.mark.slow
def test_an_int8_graph_of_tensorrt_may_take_pixels(tmp_path):
    """Its patch embedding holds the division by 255 and by the deviation of the pixels."""
    size = {"dim": 32, "dim_head": 16, "depth": 1, "frames": 2, "res": (32, 32)}
    how = {"precision": "int8", "embed_preprocess": True, "runtimes": ("tensorrt",)}
    spec = ExportSpec(engine="none", bench_seconds=0.0, **size, **how)
    result = export(spec, tmp_path / "out")
    assert result.verdict == "pass"
    model = onnx.load(tmp_path / "out" / "model.tensorrt.onnx")
    levels = [
        w for w in model.graph.initializer if w.data_type == TensorProto.INT8 and len(w.dims) == 4
    ]
    assert [bool(numpy_helper.to_array(one).any()) for one in levels] == [True]
