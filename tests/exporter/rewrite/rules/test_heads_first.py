"""Projections by head, halves apart: structure, numbers, and where it must not fire."""

import pytest

from exporter.rewrite.rules.heads_first import HeadsFirst, heads_first
from model.config import SCHEME_NAMES


@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_nothing_is_projected_twice_or_split_into_heads(make, operators, plain_operators, attn):
    model = make(attn, depth=1)
    heads_first(model)
    plain, rewritten = plain_operators(attn), operators(model)
    # Of each attention: no transposition of query, key and value, and two halves of a product for
    # each of query and key where there were two whole ones.
    assert rewritten["MatMul"] == plain["MatMul"]
    assert rewritten["Transpose"] <= plain["Transpose"] - 4
    attention = model.blocks[0].attn_s.fn
    assert isinstance(attention, HeadsFirst)
    assert attention.query_weight_0.shape == attention.key_weight_1.shape == (2, 12, 3)  # h d e/2
    assert not hasattr(attention, "to_qkv")


@pytest.mark.parametrize("rotary_emb", [True, False])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_parity(make, parity, attn, scheme, rotary_emb):
    model = make(attn, scheme, rotary_emb=rotary_emb)
    fired, error = parity("heads_first", model)
    assert fired == sum(len(block.steps) for block in model.blocks)
    assert error <= 1e-12


@pytest.mark.parametrize("scheme", ["divided", "joint"])
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_parity_with_the_published_semantics(make, parity, attn, scheme):
    fired, error = parity("heads_first", make(attn, scheme, semantics="upstream"))
    assert fired
    # The denominator of the published performer changes sign, which amplifies rounding.
    assert error <= (1e-10 if attn == "performer" else 1e-12)


@pytest.mark.parametrize("options", [{"heads": 3}, {"family": "timesformer_vit"}])
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_parity_of_other_sizes_and_families(make, parity, attn, options):
    assert parity("heads_first", make(attn, **options))[1] <= 1e-12


@pytest.mark.parametrize(
    "options", [{"attn": "fastformer"}, {"family": "timesformer_pytorch"}], ids=lambda o: str(o)
)
def test_it_does_not_fire(make, untouched, options):
    untouched("heads_first", make(**options))
