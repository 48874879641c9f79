"""The last block gives the class token only: structure, numbers, and where it must not fire."""

import pytest

from exporter.rewrite.rules.class_token import ClassToken, ClassTokenBlock, class_token
from model.config import MECHANISM_NAMES, SCHEME_NAMES


def test_one_query_one_row_of_weights_one_output(make, operators, plain_operators):
    model = make("regular", depth=1)
    class_token(model)
    plain, rewritten = plain_operators("regular"), operators(model)
    assert isinstance(model.blocks[0], ClassTokenBlock)
    assert isinstance(model.blocks[0].attn_s.fn, ClassToken)
    assert not isinstance(model.blocks[0].attn_t.fn, ClassToken)
    assert rewritten["MatMul"] == plain["MatMul"]  # smaller ones
    assert rewritten["Gelu"] == plain["Gelu"] == 1


def test_what_attends_for_the_class_token_alone_is_one_token(make, clips):
    model = make("regular")
    class_token(model)
    shapes = []
    model.blocks[-1].attn_s.fn.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    model(clips)
    assert shapes == [(2, 3, 1, 12)]  # b f 1 d


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_parity(make, parity, attn, scheme):
    fired, error = parity("class_token", make(attn, scheme))
    assert fired == 1
    assert error <= 1e-12


@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_parity_with_the_published_semantics(make, parity, attn):
    fired, error = parity("class_token", make(attn, semantics="upstream"))
    assert fired == 1
    assert error <= 1e-12


@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_parity_without_rotary_positions(make, parity, attn):
    assert parity("class_token", make(attn, family="timesformer_vit"))[1] <= 1e-12


@pytest.mark.parametrize(
    "options",
    [{"scheme": "joint", "semantics": "upstream"}, {"family": "timesformer_pytorch"}],
    ids=["joint block without residuals", "class token apart already"],
)
def test_it_does_not_fire(make, untouched, options):
    untouched("class_token", make(**options))
