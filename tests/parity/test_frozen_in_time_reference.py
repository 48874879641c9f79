"""Compare our outputs with those of Frozen-in-Time and LaViLa on their own checkpoints.

`scripts/reference_frozen_in_time.py` made them with the code of those projects. No code of the
projects runs here.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import CheckpointError, SpaceTimeTransformer, load_checkpoint
from model.families.frozen_in_time import FROZEN_IN_TIME

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "frozen_in_time"
PREFIXES = {
    "dual_fewer_frames": "module.video_model.",
    "head": "",
    "lavila_classifier": "module.visual.",
}

# Relative L2 distance of the outputs to the projects' own float64 outputs.
FP32_LIMIT = 1e-5
FP64_LIMIT = 1e-9


def read(kind: str) -> tuple[dict, Tensor, Tensor]:
    """Return the config, the video as `(b, f, c, h, w)` and the outputs in float64."""
    case = json.loads((REFERENCE / kind / "case.json").read_text())
    with np.load(REFERENCE / kind / "io.npz") as arrays:
        video, truth = (torch.from_numpy(arrays[name]) for name in ("video", "logits_fp64"))
    video = video.transpose(1, 2) if case["input_layout"] == "b c f h w" else video
    return case["config"], video.contiguous(), truth


def content(kind: str) -> dict:
    return torch.load(REFERENCE / kind / "checkpoint.pth", weights_only=True)


def load(kind: str, **config: object) -> SpaceTimeTransformer:
    path = REFERENCE / kind / "checkpoint.pth"
    model = load_checkpoint(path, config={**read(kind)[0], **config})
    assert isinstance(model, SpaceTimeTransformer)
    return model


def run(model: SpaceTimeTransformer, video: Tensor) -> Tensor:
    with torch.no_grad():
        return model(video)


def rel_l2(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


def test_reference_covers_all_kinds_of_files():
    assert {path.parent.name for path in REFERENCE.glob("*/case.json")} == set(PREFIXES)


@pytest.mark.parametrize("kind", PREFIXES)
class TestReference:
    @pytest.mark.parametrize(
        ("dtype", "limit"), [(torch.float32, FP32_LIMIT), (torch.float64, FP64_LIMIT)], ids=str
    )
    def test_outputs_equal_the_published_ones_without_a_family_named(self, kind, dtype, limit):
        _, video, truth = read(kind)
        found = run(load(kind).to(dtype), video.to(dtype))
        assert (found.dtype, found.shape) == (dtype, truth.shape)
        assert rel_l2(found, truth) <= limit

    @pytest.mark.parametrize("step", ["attn_t", "attn_s"])
    def test_one_changed_weight_exceeds_the_limit(self, kind, step):
        _, video, truth = read(kind)
        model = load(kind).double()
        with torch.no_grad():
            # Change a weight of the value projection.
            model.get_parameter(f"blocks.0.{step}.fn.to_qkv.weight")[-1, 0] += 0.1
        assert rel_l2(run(model, video.double()), truth) > 10 * FP32_LIMIT

    def test_reversed_frames_change_the_outputs(self, kind):
        _, video, truth = read(kind)
        assert rel_l2(run(load(kind).double(), video.double().flip(1)), truth) > 1e-3

    def test_a_missing_and_a_renamed_weight_are_refused(self, tmp_path, kind):
        changed = content(kind)
        state = changed["state_dict"]
        name = f"{PREFIXES[kind]}blocks.0.norm3.weight"
        weight = state.pop(name)
        torch.save(changed, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match="lacks weights"):
            load_checkpoint(tmp_path / "m.pth", config=read(kind)[0])
        state[name.replace("norm3", "norm4")] = weight
        torch.save(changed, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match="lacks weights"):
            load_checkpoint(tmp_path / "m.pth", config=read(kind)[0])

    def test_its_example_key_exists(self, kind):
        assert PREFIXES[kind] + FROZEN_IN_TIME.example in content(kind)["state_dict"]


def test_a_contradiction_names_both_values():
    with pytest.raises(CheckpointError, match=r"dim is 16 by .*, but 64 was given"):
        load("head", embed_dim=64)


def test_another_image_size_is_refused_as_the_originals_do():
    with pytest.raises(CheckpointError, match=r"height is 8 by .*, but 16 was given"):
        load("head", img_size=16)


@pytest.mark.parametrize(
    ("kind", "activation", "same"),
    [("head", "quick_gelu", False), ("lavila_classifier", "gelu", False), ("head", "gelu", True)],
)
def test_the_activation_is_that_of_the_project_unless_given(kind, activation, same):
    _, video, truth = read(kind)
    found = run(load(kind, hidden_act=activation).double(), video.double())
    assert (rel_l2(found, truth) <= FP64_LIMIT) == same


def test_each_project_has_its_own_pixels_and_frames():
    frozen, lavila = load("head"), load("lavila_classifier")
    assert (frozen.preprocessing.mean, str(frozen.preprocessing.sampling)) == (
        (0.485, 0.456, 0.406),
        "uniform:medians",
    )
    assert lavila.preprocessing.mean == pytest.approx((0.4248, 0.4578, 0.4082), abs=1e-4)
    assert lavila.preprocessing.std == pytest.approx((0.2686, 0.2613, 0.2758), abs=1e-4)
    assert str(lavila.preprocessing.sampling) == "uniform:middles"
    for model, name in ((frozen, "Frozen-in-Time"), (lavila, "LaViLa")):
        assert model.preprocessing.assumed == f"the published test of {name}"
        assert f"preprocessing of the {name} data loader assumed" in model.notes
        assert not model.preprocessing.antialias


# --- other numbers of frames ----------------------------------------------------------------------


def times(kind: str) -> Tensor:
    return content(kind)["state_dict"][f"{PREFIXES[kind]}temporal_embed"].float()


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("kind", ["head", "lavila_classifier"])
def test_fewer_frames_take_the_first_times(kind, frames):
    model = load(kind, num_frames=frames)
    assert torch.equal(model.time_embed, times(kind)[:, :frames])
    note = f"time positions of 3 frames, {frames} in use: the first ones, as the original does"
    assert note in model.notes


def test_more_frames_get_times_of_zero_in_frozen_in_time():
    model = load("head", num_frames=5)
    assert torch.equal(model.time_embed[:, :3], times("head"))
    assert not model.time_embed[:, 3:].any()
    assert [note for note in model.notes if "zero, as Frozen-in-Time does" in note]


def test_more_frames_get_interpolated_times_in_lavila():
    model, stored = load("lavila_classifier", num_frames=6), times("lavila_classifier")
    wanted = [stored[:, 0], 0.75 * stored[:, 0] + 0.25 * stored[:, 1]]
    torch.testing.assert_close(model.time_embed[:, :2], torch.stack(wanted, 1))
    assert [note for note in model.notes if "interpolated, as LaViLa does" in note]


def test_the_trained_number_of_frames_gives_no_note():
    assert not [note for note in load("head").notes if "time positions" in note]
