"""Attention piece by piece: structure, numbers, and where it must not fire."""

import pytest

from exporter.rewrite import pieces as pieces_of
from exporter.rewrite.rules.class_token import class_token
from exporter.rewrite.rules.cut_attention import Pieces, PiecewiseFrameBlock, cut_attention
from exporter.rewrite.rules.frame_weights import frame_weights
from exporter.rewrite.rules.heads_first import heads_first
from model.config import SCHEME_NAMES

FRAMES, PATCHES, HEADS = 3, 15, 2
SPACE_BYTES = 4 * FRAMES * HEADS * (PATCHES + 1) ** 2  # of softmax weights, all frames


@pytest.fixture
def limit(monkeypatch):
    """`limit(n)`: pieces of attention weights take at most n bytes."""

    def set_limit(size):
        monkeypatch.setattr(pieces_of, "PIECE_BYTES", size)

    return set_limit


def kinds(model):
    return [[type(step) for step in block.steps] for block in model.blocks]


def test_each_frame_has_its_own_products(make, operators, limit):
    model, whole = make(depth=1), operators(make(depth=1))
    limit(SPACE_BYTES / FRAMES)
    assert cut_attention(model) == 1  # the weights through time are fewer than a piece of these
    assert kinds(model)[0][-1] is Pieces
    cut = operators(model)
    assert cut["Softmax"] == whole["Softmax"] + FRAMES - 1
    assert cut["LayerNormalization"] == whole["LayerNormalization"] + FRAMES - 1


def test_more_clips_make_more_weights(make, limit):
    limit(SPACE_BYTES)
    assert cut_attention(make()) == 0
    assert cut_attention(make(), clips=2) == 2


def test_no_more_pieces_than_groups(make, limit):
    limit(1)
    model = make(depth=1)
    assert cut_attention(model) == 2
    time, space = (step.groups for step in model.blocks[0].steps)
    assert (time, space) == (2, 1)  # 8 pieces at most of the 15 patches; 3 frames


@pytest.mark.parametrize("size", [1, 500, 1000])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_parity(make, parity, limit, attn, scheme, size):
    """Also where the groups do not divide."""
    limit(size)
    fired, error = parity("cut_attention", make(attn, scheme))
    assert error <= 1e-12
    assert (fired > 0) == (scheme in {"divided", "axial"})


@pytest.mark.parametrize("attn", ["regular", "performer"])
def test_parity_of_patches_through_time(make, clips, rel_l2, limit, attn):
    """After the rewrites that make the groups inside of the block."""
    limit(500)
    model = make(attn, dim=12).double()
    truth = model(clips.double())
    assert frame_weights(model) == 2
    heads_first(model)
    assert cut_attention(model) == 4
    assert all(isinstance(block, PiecewiseFrameBlock) for block in model.blocks)
    assert rel_l2(model(clips.double()), truth) <= 1e-12


def test_parity_of_the_other_family_of_blocks(make, parity, limit):
    limit(1)
    fired, error = parity("cut_attention", make(family="timesformer_vit"))
    assert fired == 4
    assert error <= 1e-12


def test_one_query_has_few_weights(make, limit):
    limit(SPACE_BYTES / FRAMES)
    model = make()
    assert class_token(model) == 1
    assert cut_attention(model) == 1
    assert kinds(model)[-1][-1] is not Pieces


def test_it_does_not_fire_where_all_fits(make, untouched):
    untouched("cut_attention", make())


def test_it_does_not_fire_where_matrices_take_the_time(make, untouched, limit):
    limit(1)
    untouched("cut_attention", make(dim=60, dim_head=30))  # 2 x 16 weights, 60 x 60 of a matrix


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
