"""Test `join_groups`: structure, numbers, and models on which it must not fire."""

import numpy as np
import onnxruntime
import pytest
import torch

from exporter.rewrite import REWRITES
from exporter.rewrite.rules import join_groups as rule
from exporter.rewrite.rules.join_groups import join_groups
from exporter.spec import DEFAULT_OPSET, BatchProfile
from exporter.to_onnx.export import export_onnx
from model.config import SCHEME_NAMES

FRAMES, HEIGHT, WIDTH = 3, 24, 40
# Steps of a block whose groups have more tokens than frames, where tokens are rotated.
LARGE = {"divided": 1, "space": 1, "joint": 1, "axial": 0, "local-global": 0}


@pytest.fixture
def small_groups(monkeypatch):
    """Let groups of a small model count as large; those of one patch through time stay small."""
    monkeypatch.setattr(rule, "_LEAST_TOKENS", FRAMES + 3)


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_rewritten_model_equals_the_original(make, parity, small_groups, scheme):
    model = make("regular", scheme)
    if not LARGE[scheme]:
        assert join_groups(model) == 0
        return
    fired, error = parity("join_groups", model)
    assert fired >= len(model.blocks) * LARGE[scheme]
    assert error <= 1e-12


@pytest.mark.parametrize("family", ["timesformer_vit", "frozen_in_time"])
def test_rewritten_model_of_another_family_equals_the_original(make, parity, small_groups, family):
    fired, error = parity("join_groups", make("regular", family=family))
    assert error <= 1e-12
    assert fired or family != "timesformer_vit"


def test_it_works_after_class_token(make, rel_l2, clips, small_groups):
    model = make("regular").double()
    truth = model(clips.double())
    assert REWRITES["class_token"](model)
    assert join_groups(model) == 2
    assert rel_l2(model(clips.double()), truth) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("profile", [None, BatchProfile(1, 2, 4)])
def test_softmax_attention_of_large_groups_has_four_axes(
    make, clips, small_groups, tmp_path, profile
):
    model = make("regular", depth=1)
    assert join_groups(model) == 1
    path = tmp_path / "model.onnx"
    example = clips if profile else clips[:1]
    export_onnx(model, {"video": example}, path, opset=DEFAULT_OPSET, dynamic_batch=profile)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2) if profile else (1,):
        (logits,) = session.run(None, {"video": clips[:batch].numpy()})
        np.testing.assert_allclose(logits, model(clips[:batch]), rtol=1e-4, atol=1e-5)
    axes = softmax_axes(path)
    assert 4 in axes
    assert 5 in axes  # attention through time, whose groups are small


def softmax_axes(path):
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.value_info}
    return [ranks[node.output[0]] for node in graph.node if node.op_type == "Softmax"]


@pytest.mark.parametrize("attn", ["performer", "fastformer"])
def test_it_does_not_fire(make, untouched, small_groups, attn):
    untouched("join_groups", make(attn))


@pytest.mark.parametrize("rotary", [True, False])
def test_it_does_not_fire_where_the_tokens_have_no_axis_of_groups(
    make, untouched, small_groups, rotary
):
    untouched("join_groups", make("regular", "joint", semantics="upstream", rotary_emb=rotary))


def test_it_does_not_fire_where_groups_have_few_tokens(make, untouched):
    untouched("join_groups", make("regular"))


def test_it_fires_once(make, small_groups):
    model = make("regular")
    with torch.no_grad():
        assert join_groups(model) == 2
        assert join_groups(model) == 0
