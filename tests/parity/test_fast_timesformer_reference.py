"""Compare our outputs with those of the published package on its own checkpoints.

`tests/data/reference` stores outputs of the package. No code of the package runs here.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model import FastTimeSformer, load_checkpoint

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "fast_timesformer"
CASES = sorted(path.parent for path in REFERENCE.glob("*/case.json"))
LAYOUTS = {"b f c h w": (0, 1, 2, 3, 4), "b c f h w": (0, 2, 1, 3, 4)}

# Relative L2 distance of the logits to the package's own float64 logits.
FP32_LIMIT = 1e-5
FP64_LIMIT = {"fastformer": 1e-9, "regular": 1e-9, "performer": 1e-6}
# The published performer is ill-conditioned: its limit is a multiple of its own rounding error.
PERFORMER_UNITS_OF_OWN_ROUNDING = 20


def fp32_limit(case: dict) -> float:
    if case["config"]["attn_mechanism"] != "performer":
        return FP32_LIMIT
    return max(FP32_LIMIT, PERFORMER_UNITS_OF_OWN_ROUNDING * case["eager_fp32_vs_fp64_rel_l2"])


def rel_l2(got: torch.Tensor, truth: torch.Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


def read(folder: Path) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Return the case, its video as `(b, f, c, h, w)` and the logits in float64."""
    case = json.loads((folder / "case.json").read_text())
    with np.load(folder / "io.npz") as arrays:
        video = torch.from_numpy(arrays["video"]).permute(LAYOUTS[case["input_layout"]])
        return case, video.contiguous(), torch.from_numpy(arrays["logits_fp64"])


def load(folder: Path, case: dict, **changed: object) -> FastTimeSformer:
    config = {**case["config"], **changed}
    return load_checkpoint(folder / "checkpoint.pth", family=case["family"], config=config)


def test_reference_covers_all_ten_cases():
    assert len(CASES) == 10
    configs = [json.loads((folder / "case.json").read_text())["config"] for folder in CASES]
    assert {config["attn_mechanism"] for config in configs} == set(FP64_LIMIT)
    assert {config["attn_type"] for config in configs} == {"divided", "joint"}


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_float32_logits_equal_the_published_logits(folder):
    case, video, truth = read(folder)
    with torch.no_grad():
        logits = load(folder, case)(video.float())
    assert logits.dtype == torch.float32
    assert logits.shape == truth.shape
    assert rel_l2(logits, truth) <= fp32_limit(case)


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_float64_logits_equal_the_published_logits(folder):
    case, video, truth = read(folder)
    with torch.no_grad():
        logits = load(folder, case).double()(video.double())
    assert logits.dtype == torch.float64
    assert rel_l2(logits, truth) <= FP64_LIMIT[case["config"]["attn_mechanism"]]


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_config_may_omit_the_values_in_the_file(folder):
    case, video, _ = read(folder)
    untold = {name: case["config"][name] for name in ("frames", "height", "width", "dim_head")}
    model = load_checkpoint(folder / "checkpoint.pth", config=untold)
    with torch.no_grad():
        assert torch.equal(model(video.float()), load(folder, case)(video.float()))


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_one_changed_weight_exceeds_the_limit(folder):
    """The comparison can fail: a small change of one attention weight exceeds the limits."""
    case, video, truth = read(folder)
    model = load(folder, case).double()
    with torch.no_grad():
        model.blocks[0].attn_s.fn.to_qkv.weight[-1, 0] += 0.1  # a weight of the value projection
        error = rel_l2(model(video.double()), truth)
    assert error > FP64_LIMIT[case["config"]["attn_mechanism"]] * 10


@pytest.mark.parametrize(
    "folder", [folder for folder in CASES if "performer" not in folder.name], ids=lambda f: f.name
)
def test_paper_semantics_give_different_logits(folder):
    case, video, truth = read(folder)
    with torch.no_grad():
        logits = load(folder, case, semantics="paper").double()(video.double())
    assert rel_l2(logits, truth) > 1e-3
