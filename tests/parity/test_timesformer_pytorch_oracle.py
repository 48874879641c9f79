"""Run timesformer-pytorch, a test dependency, and our model on the same weights, and compare."""

import random
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model import TimeSformer, load_checkpoint

pytestmark = pytest.mark.slow  # the published package runs beside ours

with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # from its `amt is 0`
    from timesformer_pytorch import TimeSformer as Published

# Relative L2 distance of the logits to the package's own float64 logits.
FP32_LIMIT = 1e-5
FP64_LIMIT = 1e-9
GRADIENT_LIMIT = 1e-9  # float64

HEIGHT_WIDTH = ((1, 1), (1, 3), (2, 2), (3, 2), (5, 4), (3, 7))  # in patches, for rotary positions
# Grid in patches -> side of the square with as many patches, for learned positions.
SAME_COUNT = {(1, 4): 2, (3, 3): 3, (2, 8): 4, (1, 1): 1, (4, 1): 2, (9, 1): 3}


def configuration(number: int) -> tuple[dict, tuple[int, int]]:
    """Return published arguments with sizes drawn from `number`, and the frame size in pixels.

    Kinds of positions, token shift and non-square frames alternate. The package takes only
    `image_size`. With rotary positions, it still computes at any size. With learned positions, it
    computes at any size with as many patches.
    """
    draw = random.Random(number)
    rotary, patch = number % 2 == 0, draw.choice((1, 3, 4, 5))
    if rotary:
        grid = HEIGHT_WIDTH[number // 2 % len(HEIGHT_WIDTH)]
        side, dim_head = 1, draw.choice((2, 4, 6, 8, 10, 16))
    else:
        grid, side = list(SAME_COUNT.items())[number // 2 % len(SAME_COUNT)]
        dim_head = draw.choice((1, 3, 5, 8))
    config = {
        "dim": draw.randint(3, 40),
        "num_frames": draw.randint(1, 6),
        "num_classes": draw.randint(2, 7),
        "image_size": side * patch,
        "patch_size": patch,
        "channels": draw.choice((1, 2, 3)),
        "depth": draw.randint(1, 3),
        "heads": draw.randint(1, 4),
        "dim_head": dim_head,
        "rotary_emb": rotary,
        "shift_tokens": number // 2 % 2 == 1,
    }
    return config, (grid[0] * patch, grid[1] * patch)


def pair(number: int, **options: object) -> tuple[nn.Module, TimeSformer, Tensor]:
    """Return the published model and our model with its weights, in float64, and two clips."""
    config, size = configuration(number)
    torch.manual_seed(number)
    theirs = Published(**config, **options).eval()
    ours = TimeSformer(**{**config, **options, "image_size": size}).eval()
    ours.load_state_dict(theirs.state_dict())
    video = torch.randn(2, config["num_frames"], config["channels"], *size, dtype=torch.float64)
    return theirs.double(), ours.double(), video


def masks(frames: int) -> list[Tensor | None]:
    """Return no mask, a mask of all frames, one that hides a whole clip, and a random one."""
    generator = torch.Generator().manual_seed(frames)
    some = torch.rand(2, frames, generator=generator) < 0.5
    nothing = torch.tensor([[False] * frames, [True] * frames])
    return [None, torch.ones(2, frames, dtype=torch.bool), nothing, some]


def rel_l2(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


def test_configurations_cover_all_kinds():
    drawn = [configuration(number) for number in range(24)]
    kinds = {(config["rotary_emb"], config["shift_tokens"]) for config, _ in drawn}
    assert len(kinds) == 4
    assert sum(height != width for _, (height, width) in drawn) >= 8
    assert any(config["heads"] * config["dim_head"] != config["dim"] for config, _ in drawn)
    assert any(config["dim_head"] % 4 == 2 and config["rotary_emb"] for config, _ in drawn)
    assert {config["dim"] % 3 for config, _ in drawn if config["shift_tokens"]} == {0, 1, 2}
    assert any(config["num_frames"] == 1 and config["shift_tokens"] for config, _ in drawn)


@pytest.mark.parametrize("number", range(24))
class TestSameWeights:
    @torch.no_grad()
    def test_logits_equal_the_published_logits_with_every_mask(self, number):
        theirs, ours, video = pair(number)
        for mask in masks(video.shape[1]):
            truth = theirs(video, mask=mask)
            assert rel_l2(ours(video, mask), truth) <= FP64_LIMIT
            logits = ours.float()(video.float(), mask)
            assert logits.dtype == torch.float32
            assert rel_l2(logits, truth) <= FP32_LIMIT
            ours.double()

    def test_gradients_equal_the_published_gradients(self, number):
        theirs, ours, video = pair(number)
        mask = masks(video.shape[1])[-1]
        weights = torch.randn_like(theirs(video))
        for model in (theirs, ours):
            (model(video, mask=mask) * weights).sum().backward()
        expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
        largest = max(gradient.norm().item() for gradient in expected.values())
        for name, parameter in ours.named_parameters():
            assert (parameter.grad - expected[name]).norm() <= GRADIENT_LIMIT * largest, name

    def test_same_seed_gives_the_published_weights(self, number):
        config, _ = configuration(number)
        if not config["rotary_emb"]:
            config["image_size"] = config["patch_size"]
        models = []
        for kind in (Published, TimeSformer):
            torch.manual_seed(number)
            models.append(kind(**config).state_dict())
        theirs, ours = models
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())

    @torch.no_grad()
    def test_configuration_is_inferred_from_the_saved_file(self, number, tmp_path: Path):
        theirs, ours, video = pair(number)
        torch.save(theirs.float().state_dict(), tmp_path / "m.pth")
        config, size = configuration(number)
        untold = {name: config[name] for name in ("num_frames", "dim_head", "channels")}
        loaded = load_checkpoint(tmp_path / "m.pth", config={**untold, "image_size": size})
        assert loaded.config == ours.config
        assert torch.equal(loaded(video.float()), ours.float()(video.float()))


@torch.no_grad()
def test_defaults_equal_the_published_defaults():
    size = {"dim": 12, "num_frames": 1, "num_classes": 2}
    torch.manual_seed(0)
    theirs = Published(**size, depth=1)
    ours = TimeSformer(**size, depth=1)
    ours.load_state_dict(theirs.state_dict())
    video = torch.randn(1, 1, 3, 224, 224)
    truth = theirs.double()(video.double())
    assert rel_l2(ours(video), truth) <= FP32_LIMIT


@torch.no_grad()
def test_another_mask_changes_the_logits():
    """The comparison can fail: another mask gives other logits."""
    theirs, ours, video = pair(16)
    some = torch.tensor([[True, False, True], [False, True, True]])
    assert rel_l2(ours(video), theirs(video, mask=some)) > 1e-4
    assert rel_l2(ours(video, some), theirs(video, mask=some)) <= FP64_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("name", ["frame_rot_emb.inv_freqs", "image_rot_emb.scales"])
def test_changed_frequencies_are_used(name):
    """Frequencies are buffers of the file: its values replace the initial values."""
    theirs, ours, video = pair(16)
    before = theirs(video)
    state = theirs.state_dict()
    state[name] *= 1.25  # ours rounds it to float32
    theirs.load_state_dict(state)
    ours.load_state_dict(state)
    assert rel_l2(theirs(video), before) > 1e-6
    assert rel_l2(ours(video), theirs(video)) <= 1e-7
