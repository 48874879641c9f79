"""Test `heads_first`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite.rules.heads_first import HeadsFirst, heads_first
from model.config import SCHEME_NAMES


@pytest.mark.slow
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_projections_give_heads_without_a_split_or_a_second_product(
    make, operators, plain_operators, attn
):
    model = make(attn, depth=1)
    heads_first(model)
    plain, rewritten = plain_operators(attn), operators(model)
    # Each attention loses the transpositions of query, key and value. Query and key each have two
    # half products in place of two whole products.
    assert rewritten["MatMul"] == plain["MatMul"]
    assert rewritten["Transpose"] <= plain["Transpose"] - 4
    attention = model.blocks[0].attn_s.fn
    assert isinstance(attention, HeadsFirst)
    assert attention.query_weight_0.shape == attention.key_weight_1.shape == (2, 12, 3)  # h d e/2
    assert not hasattr(attention, "to_qkv")


@pytest.mark.parametrize("rotary_emb", [True, False])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_rewritten_model_equals_the_original(make, parity, attn, scheme, rotary_emb):
    model = make(attn, scheme, rotary_emb=rotary_emb)
    fired, error = parity("heads_first", model)
    assert fired == sum(len(block.steps) for block in model.blocks)
    assert error <= 1e-12


@pytest.mark.parametrize("scheme", ["divided", "joint"])
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_rewritten_model_with_upstream_semantics_equals_the_original(make, parity, attn, scheme):
    fired, error = parity("heads_first", make(attn, scheme, semantics="upstream"))
    assert fired
    # The denominator of the upstream performer changes sign, which amplifies rounding.
    assert error <= (1e-10 if attn == "performer" else 1e-12)


@pytest.mark.parametrize("options", [{"heads": 3}, {"family": "timesformer_vit"}])
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_rewritten_model_of_another_family_equals_the_original(make, parity, attn, options):
    assert parity("heads_first", make(attn, **options))[1] <= 1e-12


@pytest.mark.parametrize(
    "options", [{"attn": "fastformer"}, {"family": "timesformer_pytorch"}], ids=lambda o: str(o)
)
def test_it_does_not_fire(make, untouched, options):
    untouched("heads_first", make(**options))
