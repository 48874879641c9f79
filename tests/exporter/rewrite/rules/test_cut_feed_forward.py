"""Test `cut_feed_forward`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite import pieces as pieces_of
from exporter.rewrite.rules.class_token import class_token
from exporter.rewrite.rules.cut_feed_forward import cut_feed_forward
from model.config import MECHANISM_NAMES

TOKENS, HIDDEN = 3 * 15, 12 * 4 * 2


@pytest.fixture
def pieces(monkeypatch):
    """`pieces(n)`: set the size of a piece so that these models need n pieces."""

    def set_limit(count):
        monkeypatch.setattr(pieces_of, "PIECE_BYTES", 4 * TOKENS * HIDDEN / count)

    return set_limit


@pytest.mark.slow
def test_each_piece_has_its_own_feed_forward(make, operators, plain_operators, pieces):
    pieces(3)
    model = make(depth=1)
    assert cut_feed_forward(model) == 1
    plain, cut = plain_operators("regular"), operators(model)
    assert model.blocks[0].piece == TOKENS / 3
    assert plain["Gelu"] == 1  # the graph omits the patches' feed-forward in the last block
    assert cut["Gelu"] == 1

    deep = make()
    before = operators(deep)
    assert cut_feed_forward(deep) == 2
    after = operators(deep)
    assert after["Gelu"] == before["Gelu"] + 2
    assert after["Split"] == before["Split"] + 1


@pytest.mark.parametrize("count", [2, 3, 7, 45])
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_rewritten_model_equals_the_original(make, parity, pieces, attn, count):
    """This includes numbers of pieces that do not divide the number of tokens."""
    pieces(count)
    fired, error = parity("cut_feed_forward", make(attn))
    assert fired == 2
    assert error <= 1e-12


def test_rewritten_model_of_another_family_equals_the_original(make, parity, pieces):
    pieces(4)  # its hidden activations are half as wide
    fired, error = parity("cut_feed_forward", make(family="timesformer_vit"))
    assert fired == 2
    assert error <= 1e-12


def test_it_does_not_cut_the_class_token(make, pieces):
    pieces(2)
    model = make()
    assert class_token(model) == 1
    assert cut_feed_forward(model) == 1


def test_it_does_not_fire_if_all_activations_fit_one_piece(make, untouched):
    untouched("cut_feed_forward", make())


@pytest.mark.parametrize(
    "options",
    [{"semantics": "upstream", "scheme": "joint"}, {"family": "timesformer_pytorch"}],
    ids=["no residual", "other blocks"],
)
def test_it_does_not_fire(make, untouched, pieces, options):
    pieces(3)
    untouched("cut_feed_forward", make(**options))
