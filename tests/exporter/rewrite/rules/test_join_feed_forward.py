"""Test `join_feed_forward`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite import REWRITES
from exporter.rewrite.rules.join_feed_forward import join_feed_forward
from model.config import SCHEME_NAMES


def test_a_block_runs_its_feed_forward_once(make, clips):
    model = make("regular", depth=2)
    calls = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _module, given, _out: calls.append(given[0].shape))
    model(clips)
    assert [shape[1] for shape in calls] == [1, 45, 1, 45]
    calls.clear()
    join_feed_forward(model)
    model(clips)
    assert [shape[1] for shape in calls] == [46, 46]


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_rewritten_model_equals_the_original(make, parity, scheme):
    fired, error = parity("join_feed_forward", make("regular", scheme))
    assert fired == 2
    assert error <= 1e-12


def test_the_last_block_keeps_its_class_token_alone(make, rel_l2, clips):
    model = make("regular").double()
    truth = model(clips.double())
    assert REWRITES["class_token"](model) == 1
    assert join_feed_forward(model) == 1
    assert rel_l2(model(clips.double()), truth) <= 1e-12


def test_it_does_not_fire_twice(make, untouched):
    model = make("regular")
    assert join_feed_forward(model) == 2
    untouched("join_feed_forward", model)


@pytest.mark.parametrize(
    "options",
    [{"scheme": "joint", "semantics": "upstream"}, {"family": "timesformer_pytorch"}],
    ids=lambda o: str(o),
)
def test_it_does_not_fire(make, untouched, options):
    untouched("join_feed_forward", make(**options))


def test_a_feed_forward_in_pieces_stays(make):
    model = make("regular", depth=1)
    assert REWRITES["cut_feed_forward"](model, 2**14) == 1
    assert join_feed_forward(model) == 0
