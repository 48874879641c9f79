"""`fc_t` folded into `to_out`: structure, numbers, and where it must not fire."""

import pytest

from exporter.rewrite.rules.fold_fc import fold_fc
from model.precision import rounded_modules


@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_one_product_less_in_each_block(make, operators, plain_operators, attn):
    model = make(attn, depth=1)
    paths = set(rounded_modules(model))
    fold_fc(model)
    assert operators(model)["MatMul"] == plain_operators(attn)["MatMul"] - 1
    assert not list(model.blocks[0].fc_t.parameters())
    assert set(rounded_modules(model)) == paths  # whoever names `fc_t` still finds it


@pytest.mark.parametrize(("scheme", "steps"), [("divided", 1), ("local-global", 1), ("axial", 2)])
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_parity(make, parity, attn, scheme, steps):
    fired, error = parity("fold_fc", make(attn, scheme))
    assert fired == 2 * steps
    assert error <= 1e-12


@pytest.mark.parametrize(("attn", "limit"), [("regular", 1e-12), ("performer", 1e-10)])
def test_parity_with_the_published_semantics(make, parity, attn, limit):
    """The denominator of the published performer changes sign, which amplifies rounding."""
    fired, error = parity("fold_fc", make(attn, semantics="upstream"))
    assert fired == 2
    assert error <= limit


def test_parity_where_the_heads_are_wider_than_the_tokens(make, parity):
    assert parity("fold_fc", make("regular", heads=3))[1] <= 1e-12


def test_parity_of_the_other_family_of_blocks(make, parity):
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
