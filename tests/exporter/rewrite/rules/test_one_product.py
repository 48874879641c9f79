"""Test `one_product`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite import REWRITES
from exporter.rewrite.rules.one_product import OneProduct, one_product
from model.config import SCHEME_NAMES


@pytest.mark.slow
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_each_attention_has_one_product_for_query_key_and_value(
    make, operators, plain_operators, attn
):
    model = make(attn, depth=1)
    one_product(model)
    # Two attentions, each of which had five products: query and key also with swapped channels.
    assert operators(model)["MatMul"] == plain_operators(attn)["MatMul"] - 8
    attention = model.blocks[0].attn_s.fn
    assert isinstance(attention, OneProduct)
    assert attention.qkv_weight.shape == (36, 12)  # 3 c, d
    assert not hasattr(attention, "to_qkv")


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_rewritten_model_equals_the_original(make, parity, attn, scheme):
    model = make(attn, scheme)
    fired, error = parity("one_product", model)
    assert fired == sum(len(block.steps) for block in model.blocks)
    assert error <= 1e-12


@pytest.mark.parametrize("scheme", ["divided", "joint"])
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_rewritten_model_with_upstream_semantics_equals_the_original(make, parity, attn, scheme):
    fired, error = parity("one_product", make(attn, scheme, semantics="upstream"))
    assert fired
    # The denominator of the upstream performer changes sign, which amplifies rounding.
    assert error <= (1e-10 if attn == "performer" else 1e-12)


@pytest.mark.parametrize(
    "options", [{"rotary_emb": False}, {"heads": 3}, {"family": "timesformer_vit"}]
)
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_rewritten_model_of_another_family_equals_the_original(make, parity, attn, options):
    assert parity("one_product", make(attn, **options))[1] <= 1e-12


@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_it_works_after_the_rewrites_before_it(make, rel_l2, clips, attn):
    model = make(attn).double()
    truth = model(clips.double())
    for name in ("class_token", "fold_fc"):
        assert REWRITES[name](model)
    assert one_product(model) == 4
    assert rel_l2(model(clips.double()), truth) <= 1e-12


@pytest.mark.parametrize(
    "options", [{"attn": "fastformer"}, {"family": "timesformer_pytorch"}], ids=lambda o: str(o)
)
def test_it_does_not_fire(make, untouched, options):
    untouched("one_product", make(**options))


def test_it_does_not_fire_on_projections_by_head(make):
    model = make("regular")
    assert REWRITES["heads_first"](model) == 4
    assert one_product(model) == 0
