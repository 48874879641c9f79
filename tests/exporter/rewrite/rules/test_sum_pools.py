"""Test `sum_pools`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite import REWRITES
from exporter.rewrite.rules.sum_pools import sum_pools
from model.config import SCHEME_NAMES


@pytest.mark.slow
def test_pools_are_sums_and_no_products(make, operators, plain_operators):
    model = make("fastformer", depth=1)
    sum_pools(model)
    plain, rewritten = plain_operators("fastformer"), operators(model)
    # Two attentions; each has two rows of logits and two averages.
    assert rewritten["MatMul"] == plain["MatMul"] - 8
    assert rewritten["ReduceSum"] == plain["ReduceSum"] + 4


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_rewritten_model_equals_the_original(make, parity, scheme):
    model = make("fastformer", scheme)
    fired, error = parity("sum_pools", model)
    assert fired == sum(len(block.steps) for block in model.blocks)
    assert error <= 1e-12


def test_rewritten_model_of_another_family_equals_the_original(make, parity):
    assert parity("sum_pools", make("fastformer", family="timesformer_vit"))[1] <= 1e-12


def test_it_works_after_class_token(make, rel_l2, clips):
    model = make("fastformer").double()
    truth = model(clips.double())
    assert REWRITES["class_token"](model)
    assert sum_pools(model) == 4
    assert rel_l2(model(clips.double()), truth) <= 1e-12


@pytest.mark.parametrize("other", ["frame_weights", "pooled_rotation"])
def test_it_leaves_pools_of_other_rewrites_alone(make, other):
    model = make("fastformer")
    changed = REWRITES[other](model)
    assert changed
    assert sum_pools(model) == 4 - changed


@pytest.mark.parametrize(
    "options",
    [{"attn": "regular"}, {"attn": "performer"}, {"attn": "fastformer", "semantics": "upstream"}],
    ids=lambda o: str(o),
)
def test_it_does_not_fire(make, untouched, options):
    untouched("sum_pools", make(**options))
