"""Test `bias_apart`: structure, numbers, and models on which it must not fire."""

import onnx
import onnxruntime
import pytest
import torch

from exporter.rewrite.rules.bias_apart import BiasApart, bias_apart
from exporter.spec import DEFAULT_OPSET
from exporter.to_onnx.export import export_onnx
from model.config import MECHANISM_NAMES


def gemms_with_bias(model, folder):
    """Count the products with a bias in the graph that ONNX Runtime optimises."""
    clip = torch.zeros(1, 3, 3, 24, 40)
    path, loaded = folder / "model.onnx", folder / "loaded.onnx"
    export_onnx(model, {"video": clip}, path, opset=DEFAULT_OPSET)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(loaded), 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return sum(
        node.op_type == "Gemm" and len(node.input) == 3 for node in onnx.load(loaded).graph.node
    )


@pytest.mark.slow
def test_products_of_output_projections_have_no_bias(make, tmp_path):
    before = gemms_with_bias(make(), tmp_path)
    model = make()
    assert bias_apart(model) == 4
    assert isinstance(model.blocks[0].attn_t.fn.to_out, BiasApart)
    assert gemms_with_bias(model, tmp_path) == before - 4


@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_rewritten_model_equals_the_original(make, parity, attn):
    fired, error = parity("bias_apart", make(attn))
    assert fired == 4
    assert error <= 1e-15


@pytest.mark.parametrize("family", ["timesformer_pytorch", "timesformer_vit"])
def test_rewritten_model_of_another_family_equals_the_original(make, clips, rel_l2, family):
    model = make(family=family).double()
    truth = model(clips.double())
    assert bias_apart(model) == 4
    assert rel_l2(model(clips.double()), truth) <= 1e-15


def test_it_does_not_fire_without_a_bias(make, untouched):
    model = make()
    for block in model.blocks:
        block.attn_t.fn.to_out.bias = block.attn_s.fn.to_out.bias = None
    untouched("bias_apart", model)
