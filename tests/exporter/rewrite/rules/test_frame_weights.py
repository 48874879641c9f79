"""Test `frame_weights`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite.rules.frame_weights import FrameWeights, frame_weights
from model.config import MECHANISM_NAMES


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_attention_through_time_has_no_rotation(make, operators, plain_operators, attn):
    model = make(attn, depth=1)
    frame_weights(model)
    plain, rewritten = plain_operators(attn), operators(model)
    assert isinstance(model.blocks[0].attn_t.fn, FrameWeights)
    assert not isinstance(model.blocks[0].attn_s.fn, FrameWeights)
    assert rewritten["Mul"] <= plain["Mul"] - 4
    if attn == "fastformer":  # it sums over the frames, without groups
        assert rewritten["Softmax"] == plain["Softmax"] - 2
    else:
        assert rewritten["MatMul"] == plain["MatMul"] - 2
    assert model.blocks[0].attn_t.fn.rotated_key.shape[0] == 3  # frames


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["divided", "axial"])
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_rewritten_model_equals_the_original(make, parity, attn, scheme):
    fired, error = parity("frame_weights", make(attn, scheme))
    assert fired == 2
    assert error <= 1e-12


@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_rewritten_model_with_upstream_semantics_equals_the_original(make, parity, attn):
    """In upstream semantics time is half-split: the channels of a pair have different angles."""
    fired, error = parity("frame_weights", make(attn, semantics="upstream"))
    assert fired == 2
    # The denominator of the upstream performer changes sign, which amplifies rounding.
    assert error <= (1e-10 if attn == "performer" else 1e-12)


@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_rewritten_model_with_wide_heads_equals_the_original(make, parity, attn):
    assert parity("frame_weights", make(attn, heads=3))[1] <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "joint"},
        {"scheme": "local-global"},
        {"rotary_emb": False},
        {"dim": 36, "dim_head": 18},
        {"family": "timesformer_vit"},
    ],
    ids=["no time", "mixed groups", "no rotation", "few patches", "no rotation either"],
)
def test_it_does_not_fire(make, untouched, attn, options):
    untouched("frame_weights", make(attn, **options))
