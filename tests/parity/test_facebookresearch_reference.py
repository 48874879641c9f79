"""Compare our outputs with those of facebookresearch/TimeSformer on its own checkpoints.

`tests/data/reference` stores outputs of the package. No code of the package runs here.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import TimeSformerViT, load_checkpoint

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "facebookresearch"
KINDS = ("divided_space_time", "joint_space_time", "space_only")
HEADS = 4  # of all three models; no shape depends on it

# Relative L2 distance of the logits to the package's own float64 logits.
FP32_LIMIT = 1e-5
FP64_LIMIT = 1e-9


def rel_l2(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


def read(kind: str) -> tuple[dict, Tensor, Tensor]:
    """Return the config, the video as `(b, f, c, h, w)` and the logits in float64."""
    case = json.loads((REFERENCE / kind / "case.json").read_text())
    assert case["input_layout"] == "b c f h w"
    with np.load(REFERENCE / kind / "io.npz") as arrays:
        video = torch.from_numpy(arrays["video"]).transpose(1, 2)
        return case["config"], video.contiguous(), torch.from_numpy(arrays["logits_fp64"])


def checkpoint(kind: str) -> dict[str, Tensor]:
    """Return the state dict without its wrapper."""
    content = torch.load(REFERENCE / kind / "checkpoint.pth", weights_only=True)
    while not any(isinstance(value, Tensor) for value in content.values()):
        (content,) = content.values()
    return {name.removeprefix("model."): tensor for name, tensor in content.items()}


def load(kind: str, **config: object) -> TimeSformerViT:
    path = REFERENCE / kind / "checkpoint.pth"
    model = load_checkpoint(path, config={**read(kind)[0], **config})
    assert isinstance(model, TimeSformerViT)
    return model


def run(model: TimeSformerViT, video: Tensor) -> Tensor:
    with torch.no_grad():
        return model(video)


def test_reference_covers_all_three_attention_types():
    assert {path.parent.name for path in REFERENCE.glob("*/case.json")} == set(KINDS)
    for kind in KINDS:
        assert read(kind)[0]["attention_type"] == kind


@pytest.mark.parametrize("kind", KINDS)
class TestReference:
    def test_float32_logits_equal_the_published_logits(self, kind):
        _, video, truth = read(kind)
        logits = run(load(kind), video.float())
        assert logits.dtype == torch.float32
        assert logits.shape == truth.shape
        assert rel_l2(logits, truth) <= FP32_LIMIT

    def test_float64_logits_equal_the_published_logits(self, kind):
        _, video, truth = read(kind)
        logits = run(load(kind).double(), video.double())
        assert logits.dtype == torch.float64
        assert rel_l2(logits, truth) <= FP64_LIMIT

    def test_one_changed_weight_exceeds_the_limit(self, kind):
        _, video, truth = read(kind)
        model = load(kind).double()
        with torch.no_grad():
            # Change a weight of the value projection.
            model.get_parameter("blocks.0.attn_s.fn.to_qkv.weight")[-1, 0] += 0.1
        assert rel_l2(run(model, video.double()), truth) > 10 * FP32_LIMIT

    def test_reversed_frames_change_the_logits_except_for_space_only(self, kind):
        """The mean over the frames of `space_only` does not depend on their order."""
        _, video, truth = read(kind)
        error = rel_l2(run(load(kind).double(), video.double().flip(1)), truth)
        assert (error < FP64_LIMIT) == (kind == "space_only")

    @pytest.mark.slow
    @pytest.mark.parametrize("wrapper", ["model_state", "model", "module", "module.", "model."])
    def test_wrapped_checkpoints_give_the_same_logits(self, kind, wrapper, tmp_path):
        config, video, _ = read(kind)
        state = checkpoint(kind)
        if wrapper.endswith("."):
            content = {wrapper + name: tensor for name, tensor in state.items()}
        else:
            content = {wrapper: state, "epoch": 3}
        torch.save(content, tmp_path / "m.pyth")
        wrapped = load_checkpoint(tmp_path / "m.pyth", config=config)
        assert torch.equal(run(wrapped, video.float()), run(load(kind), video.float()))

    def test_config_may_omit_the_values_in_the_file(self, kind):
        _, video, _ = read(kind)
        untold = {"num_heads": HEADS} | ({"num_frames": 4} if kind == "space_only" else {})
        model = load_checkpoint(REFERENCE / kind / "checkpoint.pth", config=untold)
        assert torch.equal(run(model, video.float()), run(load(kind), video.float()))

    def test_data_loader_normalisation_is_assumed_and_noted(self, kind):
        model = load(kind)
        assert set(model.preprocessing.mean) == {0.45}
        assert set(model.preprocessing.std) == {0.225}
        assert [note for note in model.notes if "data loader assumed" in note]


# --- other resolutions and frame counts -----------------------------------------------------------


def nearest(stored: int, wanted: int) -> list[int]:
    """Return for each wanted place the stored place that contains its left edge."""
    return [place * stored // wanted for place in range(wanted)]


def places(stored: Tensor, height: int, width: int) -> Tensor:
    """Resize learned positions of 4 x 4 patches to another size, index by index."""
    rows, columns = nearest(4, height), nearest(4, width)
    chosen = [0, *(1 + 4 * row + column for row in rows for column in columns)]
    return stored[:, chosen]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(48, 48), (24, 40), (16, 56), (8, 8)])
def test_positions_are_resized_to_the_nearest_stored_position(kind, height, width):
    model = load(kind, image_size=[height, width])
    grid = (height // 8, width // 8)
    assert model.config.grid == grid
    assert torch.equal(model.pos_embed, places(checkpoint(kind)["pos_embed"], *grid))
    note = f"positions resized from 4 x 4 to {grid[0]} x {grid[1]} patches"
    assert note in model.notes
    assert run(model, torch.randn(1, 4, 3, height, width)).shape == (1, 5)


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("frames", [1, 3, 6, 8])
def test_times_are_resized_to_the_nearest_stored_time(kind, frames):
    model = load(kind, num_frames=frames)
    stored = checkpoint(kind)["time_embed"]
    assert torch.equal(model.time_embed, stored[:, nearest(4, frames)])
    assert f"time positions resized from 4 to {frames} frames" in model.notes
    assert run(model, torch.randn(1, frames, 3, 32, 32)).shape == (1, 5)


def test_trained_size_gives_no_note_about_a_resize():
    assert not [note for note in load("divided_space_time").notes if "resized" in note]


# --- sizes of the paper ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "millions"),
    [
        ("space", 85.9),
        ("joint", 85.9),
        ("divided", 121.4),
        ("local-global", 121.4),
        ("axial", 156.8),
    ],
)
def test_parameter_count_equals_the_paper(scheme, millions):
    """Table 1 of arXiv:2102.05095, with 400 classes; it does not count learned embeddings."""
    with torch.device("meta"):
        model = TimeSformerViT(8, 224, 224, 400, scheme=scheme)
    embeddings = {"cls_token", "pos_embed", "time_embed"}
    counted = sum(p.numel() for name, p in model.named_parameters() if name not in embeddings)
    assert counted / 1e6 == pytest.approx(millions, abs=0.1)
