"""Compare our outputs with those of timesformer-pytorch on its own checkpoints.

`tests/data/reference` stores outputs of the package. No code of the package runs here.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model import TimeSformer, load_checkpoint

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "timesformer_pytorch"
CASES = sorted(path.parent for path in REFERENCE.glob("*/case.json"))

# Relative L2 distance of the logits to the package's own float64 logits.
FP32_LIMIT = 1e-5
FP64_LIMIT = 1e-9


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def rel_l2(got: torch.Tensor, truth: torch.Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


def read(folder: Path) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Return the case, its video as `(b, f, c, h, w)` and the logits in float64."""
    case = json.loads((folder / "case.json").read_text())
    assert case["input_layout"] == "b f c h w"
    with np.load(folder / "io.npz") as arrays:
        return case, torch.from_numpy(arrays["video"]), torch.from_numpy(arrays["logits_fp64"])


def load(folder: Path, case: dict) -> TimeSformer:
    return load_checkpoint(folder / "checkpoint.pth", family=case["family"], config=case["config"])


def test_reference_covers_all_three_cases():
    assert [folder.name for folder in CASES] == ["learned", "rotary", "shift_tokens"]


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
class TestCase:
    def test_float32_logits_equal_the_published_logits(self, folder):
        case, video, truth = read(folder)
        logits = load(folder, case)(video.float())
        assert logits.dtype == torch.float32
        assert logits.shape == truth.shape
        assert rel_l2(logits, truth) <= FP32_LIMIT

    def test_float64_logits_equal_the_published_logits(self, folder):
        case, video, truth = read(folder)
        logits = load(folder, case).double()(video.double())
        assert logits.dtype == torch.float64
        assert rel_l2(logits, truth) <= FP64_LIMIT

    def test_config_may_omit_the_values_in_the_file(self, folder):
        case, video, _ = read(folder)
        config = case["config"]
        untold = {name: config[name] for name in ("num_frames", "image_size", "dim_head")}
        model = load_checkpoint(folder / "checkpoint.pth", config=untold)
        assert model.config == load(folder, case).config
        assert torch.equal(model(video.float()), load(folder, case)(video.float()))

    def test_published_weights_load_without_renaming(self, folder):
        case, video, truth = read(folder)
        content = torch.load(folder / "checkpoint.pth", weights_only=True)
        model = TimeSformer(**case["config"]).double().eval()
        model.load_state_dict(content.get("state_dict", content))
        assert rel_l2(model(video.double()), truth) <= FP64_LIMIT

    @pytest.mark.parametrize("place", [0, 1], ids=["time", "space"])
    def test_one_changed_weight_exceeds_the_limit(self, folder, place):
        """The comparison can fail: a small change of one attention weight exceeds the limits."""
        case, video, truth = read(folder)
        model = load(folder, case).double()
        name = next(
            name
            for name, _ in model.named_parameters()
            if name.startswith(f"layers.0.{place}.") and name.endswith("to_qkv.weight")
        )
        model.get_parameter(name)[-1, 0] += 0.1  # a weight of the value projection
        assert rel_l2(model(video.double()), truth) > FP32_LIMIT
