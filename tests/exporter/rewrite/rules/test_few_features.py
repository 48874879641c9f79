"""Test `few_features`: structure, numbers, and models on which it must not fire."""

import pytest
import torch

from exporter.rewrite.rules.few_features import FewFeatures, few_features
from model import PerformerAttention
from model.config import SCHEME_NAMES


@pytest.mark.slow
def test_the_graph_has_no_logarithm_and_no_division_by_feature(make, operators, plain_operators):
    model = make("performer", depth=1)
    few_features(model)
    plain, rewritten = plain_operators("performer"), operators(model)
    assert isinstance(model.blocks[0].attn_t.fn, FewFeatures)
    assert not isinstance(model.blocks[0].attn_s.fn, FewFeatures)
    assert rewritten["Log"] == plain["Log"] - 1
    assert rewritten["Add"] == plain["Add"] - 1


@pytest.mark.parametrize("dim_head", [6, 12])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_rewritten_model_equals_the_original(make, parity, scheme, dim_head):
    model = make("performer", scheme, dim_head=dim_head)
    fired, error = parity("few_features", model)
    assert fired % 2 == 0
    assert error <= 1e-12


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_float32_sums_do_not_vanish_for_distant_exponents(rel_l2, size):
    """The exponents of these keys and queries differ by hundreds, in float32."""
    torch.manual_seed(0)
    attention = PerformerAttention(dim=16, dim_head=16, seed=0)
    x = size * torch.randn(7, 5, 16)
    truth = attention.double()(x.double())
    plain = rel_l2(attention.float()(x), truth)
    attention.__class__ = type("Few", (FewFeatures, PerformerAttention), {})
    got = attention(x)
    assert torch.isfinite(got).all()
    assert rel_l2(got, truth) <= max(4 * plain, 1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"attn": "regular"},
        {"attn": "fastformer"},
        {"attn": "performer", "semantics": "upstream"},
        {"attn": "performer", "scheme": "joint"},
        {"attn": "performer", "scheme": "space"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_it_does_not_fire(make, untouched, options):
    untouched("few_features", make(**options))
