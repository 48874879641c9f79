"""Test `fold_fc`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite.rules.fold_fc import fold_fc
from model.precision import rounded_modules


@pytest.mark.slow
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_each_block_has_one_product_less(make, operators, plain_operators, attn):
    model = make(attn, depth=1)
    paths = set(rounded_modules(model))
    fold_fc(model)
    assert operators(model)["MatMul"] == plain_operators(attn)["MatMul"] - 1
    assert not list(model.blocks[0].fc_t.parameters())
    assert set(rounded_modules(model)) == paths  # a pattern for `fc_t` still matches


@pytest.mark.parametrize(("scheme", "steps"), [("divided", 1), ("local-global", 1), ("axial", 2)])
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_rewritten_model_equals_the_original(make, parity, attn, scheme, steps):
    fired, error = parity("fold_fc", make(attn, scheme))
    assert fired == 2 * steps
    assert error <= 1e-12


@pytest.mark.parametrize(("attn", "limit"), [("regular", 1e-12), ("performer", 1e-10)])
def test_rewritten_model_with_upstream_semantics_equals_the_original(make, parity, attn, limit):
    """The denominator of the upstream performer changes sign, which amplifies rounding."""
    fired, error = parity("fold_fc", make(attn, semantics="upstream"))
    assert fired == 2
    assert error <= limit


def test_rewritten_model_with_wide_heads_equals_the_original(make, parity):
    assert parity("fold_fc", make("regular", heads=3))[1] <= 1e-12


def test_rewritten_model_of_another_family_equals_the_original(make, parity):
    assert parity("fold_fc", make("regular", family="timesformer_vit"))[1] <= 1e-12


@pytest.mark.parametrize(
    "options",
    [
        {"attn": "fastformer"},
        {"scheme": "joint"},
        {"scheme": "space"},
        {"family": "timesformer_pytorch"},
    ],
    ids=["query added in between", "no fc", "no fc either", "no blocks"],
)
def test_it_does_not_fire(make, untouched, options):
    untouched("fold_fc", make(**options))
