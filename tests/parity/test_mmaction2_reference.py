"""Compare our outputs with those of OpenMMLab's mmaction2 on its own checkpoints.

`tests/data/reference` stores outputs of the package. No code of the package runs here.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import CheckpointError, load_checkpoint
from model.families.mmaction2 import MMACTION2
from model.sampling import Views

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "mmaction2"
KINDS = ("divided_space_time", "joint_space_time", "space_only")

# Relative L2 distance of the logits to the package's own float64 logits.
FP32_LIMIT = 1e-5
FP64_LIMIT = 1e-9


def read(kind: str) -> tuple[dict, Tensor, Tensor]:
    """Return the case, the video as `(b, f, c, h, w)` and the logits in float64."""
    case = json.loads((REFERENCE / kind / "case.json").read_text())
    assert case["input_layout"] == "b c f h w"
    with np.load(REFERENCE / kind / "io.npz") as arrays:
        video = torch.from_numpy(arrays["video"]).transpose(1, 2)
        return case, video.contiguous(), torch.from_numpy(arrays["logits_fp64"])


def rel_l2(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


def content(kind: str) -> dict:
    return torch.load(REFERENCE / kind / "checkpoint.pth", weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", ["config", "constructor"])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, FP32_LIMIT), (torch.float64, FP64_LIMIT)], ids=str
)
def test_logits_equal_the_published_logits_without_a_family_named(kind, arguments, dtype, limit):
    case, video, truth = read(kind)
    model = load_checkpoint(REFERENCE / kind / "checkpoint.pth", config=case[arguments]).to(dtype)
    with torch.no_grad():
        logits = model(video.to(dtype))
    assert logits.shape == truth.shape
    assert rel_l2(logits, truth) <= limit


@pytest.mark.parametrize("kind", KINDS)
def test_a_corrupted_weight_fails(tmp_path, kind):
    case, video, truth = read(kind)
    changed = content(kind)
    state = changed.get("state_dict", changed)
    name = "backbone.transformer_layers.layers.1.attentions.0.attn.out_proj.weight"
    state[name] = state[name] * 1.01
    torch.save(changed, tmp_path / "m.pth")
    model = load_checkpoint(tmp_path / "m.pth", config=case["config"])
    with torch.no_grad():
        assert rel_l2(model(video.float()), truth) > FP32_LIMIT


def test_a_missing_and_a_renamed_weight_are_refused(tmp_path):
    case, changed = read(KINDS[0])[0], content(KINDS[0])
    state = changed["state_dict"]
    name = "backbone.transformer_layers.layers.0.ffns.0.norm.weight"
    weight = state.pop(name)
    torch.save(changed, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="lacks weights"):
        load_checkpoint(tmp_path / "m.pth", config=case["config"])
    state[name.replace("norm", "gain")] = weight
    torch.save(changed, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="lacks weights"):
        load_checkpoint(tmp_path / "m.pth", config=case["config"])


def test_a_contradiction_names_both_values():
    path = REFERENCE / KINDS[0] / "checkpoint.pth"
    with pytest.raises(CheckpointError, match=r"dim is 48 by .*, but 64 was given"):
        load_checkpoint(path, config={"embed_dims": 64, "heads": 3})


def test_pixels_are_scaled_as_its_test_pipeline_does():
    case = read(KINDS[0])[0]
    model = load_checkpoint(REFERENCE / KINDS[0] / "checkpoint.pth", config=case["config"])
    how = model.preprocessing
    assert (how.mean, how.std, how.antialias) == ((0.5,) * 3, (0.5,) * 3, False)
    assert str(how.sampling) == "dense:32:steps:centre:loop"
    assert how.views == Views(1, 3, "probabilities")
    assert how.assumed == "the published test pipeline of mmaction2"
    assert "is assumed" in how.sentences[0]
    assert "preprocessing of the mmaction2 data loader assumed" in model.notes


def test_its_example_key_exists():
    assert MMACTION2.example in content(KINDS[0])["state_dict"]
