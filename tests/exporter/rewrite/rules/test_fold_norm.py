"""Test `fold_norm`: structure, numbers, and models on which it must not fire."""

import copy

import pytest
import torch

from exporter.rewrite import rewrite_measured
from exporter.rewrite.rules.fold_norm import MeanOne, fold_norm, round_rows, with_bias
from model import TimeSformerViT
from model.config import MECHANISM_NAMES, SCHEME_NAMES
from model.projections import HeadProjections

EVERY_NORM = 2 * 3  # two blocks of time, space and feed-forward


def test_norms_give_mean_one_and_projections_have_no_bias(make, clips):
    model = make()
    assert fold_norm(model) == EVERY_NORM
    block = model.blocks[0]
    tokens = block.mlp.norm(torch.randn(4, 7, 12) * 5 + 3)
    assert torch.allclose(tokens.mean(-1), torch.ones(4, 7), atol=1e-6)
    assert block.mlp.fn.net[0].bias is None
    projections = [one for one in model.modules() if isinstance(one, HeadProjections)]
    assert all(one.to_qkv.bias is None for one in projections)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_rewritten_model_equals_the_original(make, parity, attn, scheme):
    fired, error = parity("fold_norm", make(attn, scheme))
    assert fired > 2
    assert error <= 1e-13


@pytest.mark.parametrize("family", ["timesformer_pytorch", "timesformer_vit"])
def test_rewritten_model_of_another_family_equals_the_original(make, clips, rel_l2, family):
    model = make(family=family).double()
    truth = model(clips.double())
    assert fold_norm(model) == EVERY_NORM
    assert rel_l2(model(clips.double()), truth) <= 1e-13


@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_the_float32_error_does_not_grow_for_large_norms(make, clips, rel_l2, attn):
    """As in trained models, scale and shift of a norm differ in size between channels."""
    model = make(attn)
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            size = module.weight.shape
            module.weight.copy_(torch.exp(1.5 * torch.randn(size, generator=generator)))
            module.bias.copy_(3 * torch.randn(size, generator=generator))
    truth = make(attn).double()
    truth.load_state_dict(model.state_dict())
    truth = truth(clips.double())
    before = rel_l2(model(clips), truth)
    fold_norm(model)
    assert rel_l2(model(clips), truth) <= max(3 * before, 1e-6)


def test_the_float32_error_does_not_grow_for_tokens_that_vary_less_than_epsilon(rel_l2):
    """Beside the constant 1, what is left of such tokens would lose digits."""
    model = TimeSformerViT(3, 16, 24, dim=12, depth=1, heads=1, patch_size=8).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                deep = "mlp" in name or "head" in name
                weight.copy_((0.02 if deep else 2e-5) * torch.randn(weight.shape))
            elif "norm" not in name:
                weight.zero_()
    clips = torch.randn(4, 3, 3, 16, 24)
    truth = copy.deepcopy(model).double()(clips.double())
    before = rel_l2(model(clips), truth)
    assert fold_norm(model) == 3
    assert rel_l2(model(clips), truth) <= max(3 * before, 3e-7)
    assert not any(isinstance(module, MeanOne) for module in model.modules())
    assert fold_norm(model) == 0


@pytest.mark.slow
@pytest.mark.parametrize("semantics", ["paper", "upstream"])
def test_the_output_bias_of_additive_attention_moves_to_the_residual(make, semantics):
    model = rewrite_measured(make("fastformer", semantics=semantics)).model
    attention = model.blocks[0].attn_t.fn
    assert attention.to_out.bias is None
    without = rewrite_measured(make("fastformer", semantics=semantics), skip={"fold_norm"}).model
    attention = without.blocks[0].attn_t.fn
    assert attention.to_out.bias is not None


def test_a_matrix_with_bias_equals_the_projection_with_bias():
    weight, bias = torch.randn(5, 8).double(), torch.randn(5).double()
    tokens = torch.randn(3, 8).double()
    centred = tokens - tokens.mean(-1, keepdim=True)
    weight = weight - weight.mean(1, keepdim=True)
    got = (centred + 1) @ with_bias(weight, bias).T
    assert torch.allclose(got, centred @ weight.T + bias, atol=1e-12)


def test_rounded_rows_keep_their_sums():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 200, generator=generator, dtype=torch.float64)
    rounded = round_rows(weight, torch.float32)
    assert rounded.dtype == torch.float32
    # The error of a number is its own rounding plus the rounding of the number before it.
    assert (rounded.double() - weight).abs().max() <= 2 * 2**-24 * weight.abs().max()
    sums, naive = (one.double().sum(1) - weight.sum(1) for one in (rounded, weight.float()))
    assert sums.abs().max() < 2**-23
    assert naive.abs().max() > 2**-22
    assert torch.equal(round_rows(weight, torch.float64), weight)


def test_rounded_weights_add_less_error_than_float32(rel_l2):
    """The model has 256 weights in each row sum, and twelve projections with folded biases."""
    torch.manual_seed(0)
    model = TimeSformerViT(2, 32, 32, dim=256, depth=4, heads=4).eval()
    clips = torch.randn(2, 2, 3, 32, 32)
    exact = copy.deepcopy(model).double()
    truth = exact(clips.double())
    floor = rel_l2(model(clips), truth)
    fold_norm(model)
    assert rel_l2(model.double()(clips.double()), truth) < floor / 2


def test_it_does_not_fire_again(make, untouched):
    model = make()
    fold_norm(model)
    untouched("fold_norm", model)


def test_it_does_not_fire_if_frames_are_mixed_after_the_norm(make):
    model = make(family="timesformer_pytorch", shift_tokens=True)
    assert fold_norm(model) == 0
    assert not any(isinstance(module, MeanOne) for module in model.modules())
