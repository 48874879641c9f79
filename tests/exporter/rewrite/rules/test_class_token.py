"""Test `class_token`: structure, numbers, and models on which it must not fire."""

import pytest

from exporter.rewrite.rules.class_token import ClassToken, ClassTokenBlock, class_token
from model.config import MECHANISM_NAMES, SCHEME_NAMES


@pytest.mark.slow
def test_the_last_attention_gives_one_query_and_one_output(make, operators, plain_operators):
    model = make("regular", depth=1)
    class_token(model)
    plain, rewritten = plain_operators("regular"), operators(model)
    assert isinstance(model.blocks[0], ClassTokenBlock)
    assert isinstance(model.blocks[0].attn_s.fn, ClassToken)
    assert not isinstance(model.blocks[0].attn_t.fn, ClassToken)
    assert rewritten["MatMul"] == plain["MatMul"]  # as many, but smaller
    assert rewritten["Gelu"] == plain["Gelu"] == 1


def test_the_last_attention_has_one_token_as_output(make, clips):
    model = make("regular")
    class_token(model)
    shapes = []
    model.blocks[-1].attn_s.fn.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    model(clips)
    assert shapes == [(2, 3, 1, 12)]  # b f 1 d


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_rewritten_model_equals_the_original(make, parity, attn, scheme):
    fired, error = parity("class_token", make(attn, scheme))
    assert fired == 1
    assert error <= 1e-12


@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_rewritten_model_with_upstream_semantics_equals_the_original(make, parity, attn):
    fired, error = parity("class_token", make(attn, semantics="upstream"))
    assert fired == 1
    assert error <= 1e-12


@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_rewritten_model_without_rotary_positions_equals_the_original(make, parity, attn):
    assert parity("class_token", make(attn, family="timesformer_vit"))[1] <= 1e-12


@pytest.mark.parametrize(
    "options",
    [{"scheme": "joint", "semantics": "upstream"}, {"family": "timesformer_pytorch"}],
    ids=["joint block without residuals", "class token apart already"],
)
def test_it_does_not_fire(make, untouched, options):
    untouched("class_token", make(**options))
