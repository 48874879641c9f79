"""The biases of the feed-forward apart: structure, numbers, and where it must not fire."""

import onnx
import onnxruntime
import pytest
import torch

from exporter.rewrite.bias_apart import BiasApart, bias_apart
from exporter.spec import DEFAULT_OPSET
from exporter.to_onnx import export_onnx
from model.config import MECHANISM_NAMES


def loaded_operators(model, folder):
    """The nodes that ONNX Runtime makes of a model, as (operator, length of a bias in it)."""
    clip = torch.zeros(1, 3, 3, 24, 40)
    path, loaded = folder / "model.onnx", folder / "loaded.onnx"
    export_onnx(model, {"video": clip}, path, opset=DEFAULT_OPSET)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(loaded), 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(loaded).graph
    sizes = {weight.name: list(weight.dims) for weight in graph.initializer}
    return [(node.op_type, sizes.get(node.input[-1])) for node in graph.node if node.input]


def test_no_wide_bias_is_part_of_a_product(make, tmp_path):
    wide = [12 * 4]
    before = loaded_operators(make(), tmp_path)
    model = make()
    assert bias_apart(model) == 2
    assert isinstance(model.blocks[0].mlp.fn, BiasApart)
    after = loaded_operators(model, tmp_path)
    assert ("Gemm", wide) in before
    assert ("Gemm", wide) not in after


@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_parity(make, parity, attn):
    fired, error = parity("bias_apart", make(attn))
    assert fired == 2
    assert error <= 1e-15


def test_parity_of_the_other_family_with_such_a_feed_forward(make, clips, rel_l2):
    model = make(family="timesformer_pytorch").double()
    truth = model(clips.double())
    assert bias_apart(model) == 2
    assert rel_l2(model(clips.double()), truth) <= 1e-15


def test_it_does_not_fire_on_another_feed_forward(make, untouched):
    untouched("bias_apart", make(family="timesformer_vit"))
