"""Test `pooled_rotation`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite.rules.frame_weights import frame_weights
from exporter.rewrite.rules.pooled_rotation import PooledRotation, pooled_rotation
from model.config import SCHEME_NAMES


def test_each_token_is_projected_once(make, clips):
    model = make("fastformer", depth=1)
    pooled_rotation(model)
    attention = model.blocks[0].attn_s.fn
    assert isinstance(attention, PooledRotation)
    shapes = []
    attention.dot, dot = lambda x, rows: shapes.append(x.shape) or dot(x, rows), attention.dot
    model(clips)
    assert shapes == [(2, 3, 16, 24)] * 2  # b f 1+hw 2c


@pytest.mark.slow
def test_the_graph_has_fewer_products_and_sums_of_tokens(make, operators, plain_operators):
    model = make("fastformer", depth=1)
    pooled_rotation(model)
    plain, rewritten = plain_operators("fastformer"), operators(model)
    # In each attention four products with tables become two, and two sums become one (pooled).
    assert rewritten["Mul"] == plain["Mul"] - 2 * 2


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_rewritten_model_equals_the_original(make, parity, scheme):
    model = make("fastformer", scheme)
    fired, error = parity("pooled_rotation", model)
    assert fired == sum(len(block.steps) for block in model.blocks)
    assert error <= 1e-12


def test_rewritten_model_with_upstream_semantics_equals_the_original(make, parity):
    """In upstream semantics time is half-split: a pair has two angles, so it is no rotation."""
    fired, error = parity("pooled_rotation", make("fastformer", semantics="upstream"))
    assert fired == 4
    assert error <= 1e-12


def test_it_does_not_fire_after_frame_weights(make):
    model = make("fastformer")
    assert frame_weights(model) == 2
    assert pooled_rotation(model) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"attn": "regular"},
        {"attn": "performer"},
        {"attn": "fastformer", "rotary_emb": False},
        {"attn": "fastformer", "scheme": "joint", "semantics": "upstream"},
        {"attn": "fastformer", "family": "timesformer_vit"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_it_does_not_fire(make, untouched, options):
    untouched("pooled_rotation", make(**options))
