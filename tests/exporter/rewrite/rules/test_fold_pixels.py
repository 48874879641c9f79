import copy

import pytest
import torch

from exporter.rewrite import rewrite_measured
from exporter.rewrite.pixels import take_pixels
from exporter.rewrite.rules.fold_pixels import fold_pixels
from model.precision import lower_precision
from model.preprocessing import Preprocessing

FAMILIES = ("fast_timesformer", "timesformer_vit", "timesformer_pytorch", "frozen_in_time")
HOW = Preprocessing((0.485, 0.456, 0.1), (0.229, 0.9, 0.225))  # each channel has other values


@pytest.fixture
def pixels(clips):
    generator = torch.Generator().manual_seed(3)
    shape = clips.permute(0, 1, 3, 4, 2).shape
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.fixture
def embedded(make):
    """`embedded(family)`: an original model, and a copy that takes pixels."""

    def build(family="fast_timesformer"):
        model = make(family=family, depth=1)
        model.preprocessing = HOW
        own = copy.deepcopy(model)
        take_pixels(own)
        return model, own

    return build


def normalised(pixels):
    mean, std = (torch.tensor(values)[:, None, None] for values in (HOW.mean, HOW.std))
    return (pixels.permute(0, 1, 4, 2, 3).double() / 255 - mean) / std


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_give_the_logits_of_normalised_clips(embedded, pixels, rel_l2, family):
    model, own = embedded(family)
    truth = model.double()(normalised(pixels))
    assert rel_l2(own.double()(pixels), truth) <= 1e-14
    assert rel_l2(own(pixels.flip(-1)), truth) > 1e-4  # the order of channels matters
    assert own.preprocessing.embedded
    assert not model.preprocessing.embedded


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folded_patch_embedding_equals_the_original(embedded, pixels, rel_l2, family):
    _, own = embedded(family)
    own = own.double()
    truth = own(pixels)
    assert fold_pixels(own) == 1
    assert rel_l2(own(pixels), truth) <= 1e-13
    own.pixels_folded = False  # now it normalises twice
    assert rel_l2(own(pixels), truth) > 1e-3


def test_it_fires_once_and_saves_all_operations_except_the_cast(embedded):
    _, own = embedded()
    rewritten, fired, _ = rewrite_measured(own)
    one = next(one for one in fired if one.name == "fold_pixels")
    assert (one.places, one.operations_saved) == (1, 3)
    assert fold_pixels(rewritten) == 0


def test_it_does_not_fire_for_a_model_of_normalised_clips(make, untouched):
    untouched("fold_pixels", make())


@pytest.mark.slow
def test_its_graph_adds_only_a_cast_and_a_transpose(embedded, operators, pixels):
    _, own = embedded()
    rewritten = rewrite_measured(own).model
    plain = rewrite_measured(embedded()[0]).model
    more = operators(rewritten, pixels[:1]) - operators(plain)
    assert more == {"Cast": 1, "Transpose": 1}


def test_bfloat16_weights_do_not_round_the_pixels(embedded, pixels, rel_l2):
    """Integers up to 255 are exact in the eight-bit significand of bfloat16."""
    _, own = embedded()
    truth = own.double()(pixels)
    _, own = embedded()
    rewritten = rewrite_measured(own).model
    lower_precision(own, torch.bfloat16)
    lower_precision(rewritten, torch.bfloat16)
    assert rel_l2(rewritten(pixels), truth) <= 2 * rel_l2(own(pixels), truth)
