"""State dicts of the SpaceTimeTransformer of Frozen-in-Time, EgoVLP and LaViLa.

Sources: m-bain/frozen-in-time and showlab/EgoVLP, model/video_transformer.py and model/model.py;
facebookresearch/LaViLa, lavila/models/timesformer.py, models.py and utils.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ConfigError, SpaceTimeConfig
from model.families import facebookresearch
from model.families.base import Family, Told
from model.preprocessing import Preprocessing
from model.sampling import Sampling
from model.space_time_transformer import SpaceTimeTransformer
from model.weights.file import WeightsFile

# Names of this family -> names of facebookresearch.
_NAMES = {
    ".norm3.": ".temporal_norm1.",
    ".timeattn.": ".temporal_attn.",
    "temporal_embed": "time_embed",
}
# The test loaders of the originals. None resizes with antialiasing.
FROZEN = Preprocessing(
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    antialias=False,
    sampling=Sampling("uniform", "medians"),
    assumed="the published test of Frozen-in-Time",
)
# Of its models that start from CLIP. The first mean is not that of CLIP, which is 0.481.
LAVILA = Preprocessing(
    tuple(value / 255 for value in (108.3272985, 116.7460125, 104.09373615)),
    tuple(value / 255 for value in (68.5005327, 66.6321579, 70.32316305)),
    antialias=False,
    sampling=Sampling("uniform", "middles"),
    assumed="the published test of LaViLa",
)


def translate(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the arguments of the original constructor: `img_size`, `embed_dim`, ..."""
    return facebookresearch.translate(given)


def check(keys: Collection[str]) -> None:
    """Refuse the options of the original that no published model has."""
    if any(key.endswith(".alpha_timeattn") for key in keys):
        raise ConfigError(
            "has gates on its attention through time (alpha_timeattn of LaViLa), which this "
            "package does not compute; multiply weight and bias of each timeattn.proj by "
            "tanh(alpha_timeattn), and remove the gates from the file"
        )
    if any("pre_logits." in key for key in keys):
        raise ConfigError(
            "has a layer between the last norm and the classifier (pre_logits), which this "
            "package does not compute"
        )


def prepare(weights: WeightsFile) -> WeightsFile:
    """Rename the weights to those of facebookresearch."""
    return replace(weights, state={_rename(name): t for name, t in weights.state.items()})


def infer(weights: WeightsFile, given: Mapping[str, Any]) -> dict[str, Told]:
    """Infer the configuration from names and shapes; no shape depends on the number of heads."""
    told = facebookresearch.infer(weights, given)
    ln_pre = "ln_pre.weight" in weights.state
    told["ln_pre"] = Told(ln_pre, f"the {'presence' if ln_pre else 'absence'} of ln_pre.weight")
    if ln_pre:  # every published model with it starts from CLIP
        told["hidden_act"] = Told("quick_gelu", "ln_pre, which is that of CLIP", guess=True)
    if {"dim", "depth"} <= told.keys() and (told["dim"].value, told["depth"].value) == (1024, 24):
        told["heads"] = Told(16, "its dim and depth, which are those of a ViT-L", guess=True)
    return told


def describe(
    _weights: WeightsFile, given: Mapping[str, Any], config: SpaceTimeConfig
) -> dict[str, Any]:
    """Return the data loader of the project whose file it is, and notes on what is assumed."""
    if not config.ln_pre:
        return {"loader": ("Frozen-in-Time", FROZEN)}
    assumed = f"hidden_act {config.hidden_act} assumed, that of CLIP: the file has its ln_pre"
    return {"loader": ("LaViLa", LAVILA), "notes": () if "hidden_act" in given else (assumed,)}


def adapt(
    state: Mapping[str, Tensor], config: SpaceTimeConfig
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename the weights, and fit the learned times to the frames of the clip."""
    times, notes = state.get("time_embed"), ()
    if times is not None and times.ndim == 3 and times.shape[1] not in (0, config.frames):
        fitted, how = _fit_times(times, config)
        state = {**state, "time_embed": fitted}
        notes = (f"time positions of {times.shape[1]} frames, {config.frames} in use: {how}",)
    ours, more = facebookresearch.adapt(state, config)
    ours = {name.replace(".to_out.", ".to_out.0."): tensor for name, tensor in ours.items()}
    if config.ln_pre:  # then the patch embedding has no bias, as in CLIP
        ours.setdefault("patch_embed.bias", torch.zeros(config.dim))
    return ours, notes + more


def _fit_times(times: Tensor, config: SpaceTimeConfig) -> tuple[Tensor, str]:
    """Fit `(1, n, d)` to the frames as the originals do; also say how."""
    more = config.frames - times.shape[1]
    if more < 0:
        return times[:, : config.frames], "the first ones, as the original does"
    if config.ln_pre:
        fitted = F.interpolate(times.mT.float(), size=config.frames, mode="linear").mT
        return fitted, "interpolated, as LaViLa does"
    return F.pad(times, (0, 0, 0, more)), "the others are zero, as Frozen-in-Time does"


def _rename(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name


FROZEN_IN_TIME = Family(
    name="frozen_in_time",
    model=SpaceTimeTransformer,
    example="blocks.0.timeattn.qkv.weight",
    anchor=r"blocks\.\d+\.timeattn\.qkv\.weight",
    variant_of="facebookresearch",
    members=r"(cls_token|pos_embed|temporal_embed|(patch_embed\.proj|ln_pre|norm)\.\w+|blocks\..+)",
    head="head",
    check=check,
    prepare=prepare,
    translate=translate,
    infer=infer,
    adapt=adapt,
    describe=describe,
    free=frozenset({"frames", "heads", "hidden_act", "drop_path", "proj_dropout"}),
    needed=facebookresearch.FACEBOOKRESEARCH.needed,
)
