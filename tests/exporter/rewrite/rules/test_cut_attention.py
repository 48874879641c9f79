"""Test `cut_attention`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite import pieces as pieces_of
from exporter.rewrite.rules.class_token import class_token
from exporter.rewrite.rules.cut_attention import Pieces, PiecewiseFrameBlock, cut_attention
from exporter.rewrite.rules.frame_weights import frame_weights
from exporter.rewrite.rules.heads_first import heads_first
from model.config import SCHEME_NAMES

FRAMES, PATCHES, HEADS = 3, 15, 2
SPACE_BYTES = 4 * FRAMES * HEADS * (PATCHES + 1) ** 2  # bytes of the softmax weights of all frames


@pytest.fixture
def limit(monkeypatch):
    """`limit(n)`: set the size of a piece of attention weights to at most n bytes."""

    def set_limit(size):
        monkeypatch.setattr(pieces_of, "PIECE_BYTES", size)

    return set_limit


def kinds(model):
    return [[type(step) for step in block.steps] for block in model.blocks]


@pytest.mark.slow
def test_each_piece_has_its_own_products(make, operators, limit):
    model, whole = make(depth=1), operators(make(depth=1))
    limit(SPACE_BYTES / FRAMES)
    assert cut_attention(model) == 1  # the weights through time fit one piece
    assert kinds(model)[0][-1] is Pieces
    cut = operators(model)
    assert cut["Softmax"] == whole["Softmax"] + FRAMES - 1
    assert cut["LayerNormalization"] == whole["LayerNormalization"] + FRAMES - 1


def test_more_clips_need_more_pieces(make, limit):
    limit(SPACE_BYTES)
    assert cut_attention(make()) == 0
    assert cut_attention(make(), clips=2) == 2


def test_the_number_of_pieces_is_limited(make, limit):
    limit(1)
    model = make(depth=1)
    assert cut_attention(model) == 2
    time, space = (step.groups for step in model.blocks[0].steps)
    assert (time, space) == (2, 1)  # at most 8 pieces of the 15 patches; 3 frames


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 500, 1000])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_rewritten_model_equals_the_original(make, parity, limit, attn, scheme, size):
    """This includes sizes that do not divide the number of groups."""
    limit(size)
    fired, error = parity("cut_attention", make(attn, scheme))
    assert error <= 1e-12
    assert (fired > 0) == (scheme in {"divided", "axial"})


@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_attention_through_time_after_other_rewrites_equals_the_original(
    make, clips, rel_l2, limit, attn
):
    """Apply the rewrites that make the groups inside the block first."""
    limit(500)
    model = make(attn, dim=12).double()
    truth = model(clips.double())
    assert frame_weights(model) == 2
    heads_first(model)
    assert cut_attention(model) == 4
    assert all(isinstance(block, PiecewiseFrameBlock) for block in model.blocks)
    assert rel_l2(model(clips.double()), truth) <= 1e-12


def test_rewritten_model_of_another_family_equals_the_original(make, parity, limit):
    limit(1)
    fired, error = parity("cut_attention", make(family="timesformer_vit"))
    assert fired == 4
    assert error <= 1e-12


def test_attention_of_one_query_is_not_cut(make, limit):
    limit(SPACE_BYTES / FRAMES)
    model = make()
    assert class_token(model) == 1
    assert cut_attention(model) == 1
    assert kinds(model)[-1][-1] is not Pieces


def test_it_does_not_fire_if_all_weights_fit_one_piece(make, untouched):
    untouched("cut_attention", make())


def test_it_does_not_fire_if_matrices_are_larger_than_the_weights(make, untouched, limit):
    limit(1)
    untouched("cut_attention", make(dim=60, dim_head=30))  # 2 x 16 weights, a matrix of 60 x 60


@pytest.mark.parametrize(
    "options",
    [
        {"attn": "fastformer"},
        {"attn": "performer", "semantics": "upstream"},
        {"scheme": "joint"},
        {"scheme": "local-global"},
        {"scheme": "space"},
        {"family": "timesformer_pytorch"},
    ],
    ids=[
        "few weights",
        "no weights",
        "one group",
        "a rotation for each group",
        "a class token for each group",
        "other blocks",
    ],
)
def test_it_does_not_fire(make, untouched, limit, options):
    limit(1)
    untouched("cut_attention", make(**options))
