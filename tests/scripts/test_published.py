"""Test scripts/peers/published.py: the baseline of the timings equals the model."""

import pytest
import torch

from model import FastTimeSformer, TimeSformerViT

TOLERANCE = 1e-9  # float64


@pytest.fixture(scope="module")
def published(script):
    return script("published")


def make(mechanism, semantics, **more):
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "dim": 64, "depth": 2, "dim_head": 16, **more}
    return FastTimeSformer(
        3, 3, 32, 48, attn_mechanism=mechanism, semantics=semantics, **sizes
    ).eval()


def difference(model, published):
    video = torch.randn(2, 3, 3, 32, 48, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        ours, theirs = model.double()(video), published.double()(video)
    return float((theirs - ours).norm() / ours.norm())


@pytest.mark.parametrize("dim_head", [16, 6])  # of 6 channels the spatial rotation changes only 4
@pytest.mark.parametrize("semantics", ["paper", "upstream"])
@pytest.mark.parametrize("mechanism", ["regular", "performer", "fastformer"])
def test_its_logits_equal_those_of_the_model(published, mechanism, semantics, dim_head):
    model = make(mechanism, semantics, dim=2 * dim_head, dim_head=dim_head)
    assert difference(model, published.as_published(model)) <= TOLERANCE


@pytest.mark.parametrize("mechanism", ["regular", "performer", "fastformer"])
def test_the_two_semantics_give_different_logits(published, mechanism):
    paper, upstream = make(mechanism, "paper"), make(mechanism, "upstream")
    upstream.load_state_dict(paper.state_dict())
    assert difference(paper, published.as_published(upstream)) > 1e-3


def test_a_changed_weight_changes_the_logits(published):
    model = make("fastformer", "upstream")
    baseline = published.as_published(model)
    with torch.no_grad():
        baseline.blocks[1].fc_t.weight[0, 0] += 1.0
    assert difference(model, baseline) > 1e-6


def test_it_is_in_evaluation_mode_and_has_the_model_s_type(published):
    baseline = published.as_published(make("regular", "paper").double())
    assert not any(module.training for module in baseline.modules())
    assert {parameter.dtype for parameter in baseline.parameters()} == {torch.float64}


@pytest.mark.parametrize("more", [{"attn_type": "joint"}, {"rotary_emb": False}])
def test_a_model_that_the_package_lacks_is_refused(published, more):
    with pytest.raises(ValueError, match="divided"):
        published.as_published(make("regular", "paper", **more))


def test_the_transformers_model_has_the_same_sizes(published):
    ours = TimeSformerViT(2, 32, 32, 5, 64, 1, 2)
    theirs = published.HuggingFaceTimeSformer(ours.config).eval()
    with torch.no_grad():
        assert theirs(torch.randn(2, 2, 3, 32, 32)).shape == (2, 5)
    count = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert count[0] == count[1]
