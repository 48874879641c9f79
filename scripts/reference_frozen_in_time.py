"""Make the reference outputs of Frozen-in-Time and LaViLa with the code of those projects.

    python scripts/reference_frozen_in_time.py FROZEN LAVILA [FOLDER]

FROZEN and LAVILA are clones of github.com/m-bain/frozen-in-time (EgoVLP has the same file) and of
github.com/facebookresearch/LaViLa. Their classes compute random small models in float32 and in
float64. The weights and the clips are numbers of float16, so that the files are small. The three
functions that the classes take from timm are given here: none acts outside training.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "reference" / "frozen_in_time"


@dataclass(frozen=True)
class Case:
    """A model, how its project wraps it in a file, and a clip of `frames` frames."""

    name: str
    constructor: dict[str, Any]
    frames: int
    prefix: str = ""
    head: str = ""  # the path of a linear map after the model, where it is not its own
    projection: str = ""  # a linear map in the file that the outputs do not go through
    lavila: bool = False


SMALL = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
CASES = (
    Case("head", {**SMALL, "img_size": 8, "num_frames": 3, "num_classes": 5}, 3),
    Case(
        "dual_fewer_frames",
        {**SMALL, "img_size": (8, 12), "num_frames": 4, "num_classes": 0},
        2,
        prefix="module.video_model.",
        projection="module.vid_proj.0",
    ),
    Case(
        "lavila_classifier",
        {**SMALL, "img_size": 8, "num_frames": 3, "num_classes": 0, "ln_pre": True},
        3,
        prefix="module.visual.",
        head="module.fc_cls",
        lavila=True,
    ),
)


def stand_in_for_timm() -> None:
    """Offer what the classes import of timm."""
    layers = ModuleType("timm.models.layers")
    layers.DropPath = nn.Dropout  # type: ignore[attr-defined]  # of rate 0 here
    layers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)  # type: ignore[attr-defined]
    layers.trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
    sys.modules |= {"timm.models.layers": layers}
    sys.modules |= {name: ModuleType(name) for name in ("timm", "timm.models")}


def load(path: Path) -> Any:  # noqa: ANN401  # a module of another project
    """Run one file of a clone."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def make(case: Case, frozen: Path, lavila: Path, folder: Path) -> None:
    """Write `checkpoint.pth`, `io.npz` and `case.json` of a case."""
    torch.manual_seed(0)
    options = dict(case.constructor)
    if case.lavila:
        options["act_layer"] = load(lavila / "lavila/models/openai_model.py").QuickGELU
        file = lavila / "lavila/models/timesformer.py"
    else:
        file = frozen / "model/video_transformer.py"
    model = load(file).SpaceTimeTransformer(**options).eval()
    model.pre_logits = nn.Identity()
    for name, parameter in model.named_parameters():
        centre = float(parameter.ndim == 1 and name.endswith("weight"))  # that of a norm
        parameter.copy_((centre + 0.2 * torch.randn(parameter.shape)).half())
    after = nn.Linear(options["embed_dim"], 5)
    for parameter in after.parameters():
        parameter.copy_(parameter.half())
    state = {case.prefix + name: tensor.half() for name, tensor in model.state_dict().items()}
    for path in filter(None, (case.head, case.projection)):
        state |= {f"{path}.{name}": tensor.half() for name, tensor in after.state_dict().items()}

    sides = options["img_size"] if isinstance(options["img_size"], tuple) else (8, 8)
    shape = (2, 3, case.frames, *sides) if case.lavila else (2, case.frames, 3, *sides)
    video = torch.randn(shape).half()

    def compute(dtype: torch.dtype) -> Tensor:
        found = model.to(dtype)(video.to(dtype))
        return after.to(dtype)(found) if case.head else found

    single, double = compute(torch.float32), compute(torch.float64)
    out = folder / case.name
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state}, out / "checkpoint.pth", _use_new_zipfile_serialization=False)
    np.savez_compressed(
        out / "io.npz", video=video.numpy(), logits_fp32=single.numpy(), logits_fp64=double.numpy()
    )
    description = {
        "family": "frozen_in_time",
        "config": {"num_heads": 2, "num_frames": case.frames, "img_size": list(sides)},
        "constructor": case.constructor,
        "input_layout": "b c f h w" if case.lavila else "b f c h w",
        "eager_fp32_vs_fp64_rel_l2": ((single - double).norm() / double.norm()).item(),
    }
    (out / "case.json").write_text(json.dumps(description, indent=1))


def main(frozen: str, lavila: str, folder: str = str(FOLDER)) -> None:
    """Make all cases."""
    stand_in_for_timm()
    for case in CASES:
        make(case, Path(frozen), Path(lavila), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
