"""Test `fold_global_key`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite.rules.class_token import class_token
from exporter.rewrite.rules.fold_global_key import FoldedGlobalKey, fold_global_key


@pytest.mark.slow
def test_the_tokens_have_one_product_instead_of_two(make, operators, plain_operators):
    model = make("fastformer", depth=1)
    assert fold_global_key(model) == 1
    assert isinstance(model.blocks[0].attn_s.fn, FoldedGlobalKey)
    assert not isinstance(model.blocks[0].attn_t.fn, FoldedGlobalKey)
    # The number of products is equal, but one of them multiplies weights. No token adds the query.
    assert operators(model)["MatMul"] <= plain_operators("fastformer")["MatMul"] + 1


@pytest.mark.parametrize("scheme", ["space", "joint", "divided"])
@pytest.mark.parametrize("rotary_emb", [True, False])
def test_rewritten_model_equals_the_original(make, parity, scheme, rotary_emb):
    model = make("fastformer", scheme, rotary_emb=rotary_emb)
    fired, error = parity("fold_global_key", model)
    assert fired == 2
    assert error <= 1e-12


def test_rewritten_model_of_another_family_equals_the_original(make, parity):
    fired, error = parity("fold_global_key", make("fastformer", family="timesformer_vit"))
    assert fired == 2
    assert error <= 1e-12


def test_it_does_not_change_the_class_token(make):
    model = make("fastformer")
    assert class_token(model) == 1
    assert fold_global_key(model) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"attn": "regular"},
        {"attn": "performer"},
        {"attn": "fastformer", "semantics": "upstream"},
        {"attn": "fastformer", "scheme": "axial"},
        {"attn": "fastformer", "dim": 24},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_it_does_not_fire(make, untouched, options):
    untouched("fold_global_key", make(**options))
