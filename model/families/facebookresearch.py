"""State dicts of facebookresearch/TimeSformer (`.pyth`), and the resizing of their positions."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ConfigError, ViTConfig, check_choice, image_sides
from model.families.base import (
    Family,
    Told,
    count_blocks,
    count_classes,
    list_weights,
    rename,
    shape_of,
    square_side,
)
from model.families.paddlevideo import from_paddle
from model.preprocessing import Preprocessing
from model.sampling import Sampling
from model.timesformer_vit import TimeSformerViT
from model.weights.file import WeightsFile

ATTENTION_TYPES = {
    "divided_space_time": "divided",
    "joint_space_time": "joint",
    "space_only": "space",
}
# The loader of its Kinetics models; each model has its own rate.
KINETICS = Sampling("dense", "window", fps=30.0, place="start")
# Original module names of a block -> our names.
# In every scheme, `attn_s` is our name of the last attention step.
_BLOCK = {
    "norm1": "attn_s.norm",
    "attn.qkv": "attn_s.fn.to_qkv",
    "attn.proj": "attn_s.fn.to_out",
    "temporal_norm1": "attn_t.norm",
    "temporal_attn.qkv": "attn_t.fn.to_qkv",
    "temporal_attn.proj": "attn_t.fn.to_out",
    "temporal_fc": "fc_t",
    "norm2": "mlp.norm",
    "mlp.fc1": "mlp.fn.fc1",
    "mlp.fc2": "mlp.fn.fc2",
}
_TOKENS = ("cls_token", "patch_embed.proj.weight", "pos_embed")
_ARGUMENTS = {
    "num_frames": "frames",
    "in_chans": "channels",
    "embed_dim": "dim",
    "hidden_size": "dim",
    "num_heads": "heads",
    "drop_path_rate": "drop_path",
    "attn_drop_rate": "attn_dropout",
    "drop_rate": "proj_dropout",
}


def translate(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the arguments of the original constructor: `img_size`, `embed_dim`, ..."""
    return translate_names(given, _ARGUMENTS)


def translate_names(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename entries, and convert image sizes and attention types to those of this package."""
    translated = rename(given, names)
    for name in ("image_size", "img_size"):
        if name in translated:
            translated |= _sides(translated.pop(name), translated)
    if "attention_type" in translated:
        kind = translated.pop("attention_type")
        check_choice("attention_type", kind, ATTENTION_TYPES)
        translated = rename(
            {**translated, "attention_type": ATTENTION_TYPES[kind]}, {"attention_type": "scheme"}
        )
    return translated


def _sides(size: object, given: Mapping[str, Any]) -> dict[str, Any]:
    height, width = image_sides(size)
    sides = {"height": height, "width": width}
    for name, value in sides.items():
        if given.get(name, value) != value:
            raise ConfigError(f"{name} is given twice: as {given[name]!r} and as {value!r}")
    return sides


def check(keys: Collection[str]) -> None:
    """Refuse a model that has the same keys and more, and computes another function."""
    if any(".timeattn." in key for key in keys):
        raise ConfigError(
            "is a SpaceTimeTransformer of Frozen-in-Time, EgoVLP or LaViLa, whose blocks add time "
            "and space in another way: give the family frozen_in_time, or none"
        )


def infer(weights: WeightsFile, given: Mapping[str, Any]) -> dict[str, Told]:
    """Infer the configuration from names and shapes; no shape depends on the number of heads."""
    del given
    state = weights.state
    if lacking := [name for name in _TOKENS if name not in state]:
        raise ConfigError(f"{list_weights('lacks', lacking)}, which every TimeSformer has")
    told = {
        "depth": count_blocks("blocks", state),
        "qkv_bias": Told("blocks.0.attn.qkv.bias" in state, "the bias of blocks.0.attn.qkv"),
        "attn": Told("regular", "its family"),
    }
    sizes = {
        "dim": ("cls_token", -1),
        "mlp_dim": ("blocks.0.mlp.fc1.weight", 0),
        "channels": ("patch_embed.proj.weight", 1),
        "patch_size": ("patch_embed.proj.weight", -1),
        "frames": ("time_embed", 1),
    }
    for name, (key, axis) in sizes.items():
        if key in state and state[key].ndim > max(axis, 0):
            told[name] = Told(state[key].shape[axis], shape_of(key, state[key]))
    told["num_classes"] = count_classes("head.weight", state)
    if any(".temporal_attn." in key for key in state):
        told["scheme"] = Told("divided", "the presence of temporal_attn")
    elif "time_embed" in state:
        told["scheme"] = Told("joint", "the presence of time_embed without temporal_attn")
    else:
        told["scheme"] = Told("space", "the absence of time_embed")
    # Every published checkpoint is a ViT-B, which has 12 heads.
    if {"dim", "depth"} <= told.keys() and (told["dim"].value, told["depth"].value) == (768, 12):
        where = "its dim and depth, which are those of a ViT-B"
        told["heads"] = Told(12, where, guess=True)
    return told | _infer_resolution(state, told)


def _infer_resolution(state: Mapping[str, Tensor], told: Mapping[str, Told]) -> dict[str, Told]:
    """Infer height and width from the learned positions, if they fill a square."""
    side, patch = square_side(state.get("pos_embed")), told.get("patch_size")
    if side is None or patch is None:
        return {}
    entry = Told(side * patch.value, shape_of("pos_embed", state["pos_embed"]))
    return {"height": entry, "width": entry}


def adapt(
    state: Mapping[str, Tensor], config: ViTConfig
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename the weights, and resize the learned positions if the clip has another size."""
    ours = {_our_name(name): tensor for name, tensor in state.items()}
    return resize_positions(ours, config)


def resize_positions(
    state: Mapping[str, Tensor], config: ViTConfig
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Resize `pos_embed` and `time_embed` to a configuration; also return a note on each resize.

    The original code does the same if it runs at another size: it interpolates by nearest
    neighbour, in two dimensions for places and in one dimension for times. The stored places must
    fill a square.
    """
    resized, notes = dict(state), []
    places, wanted = state.get("pos_embed"), config.grid
    if places is not None and places.ndim == 3 and places.shape[1] - 1 != math.prod(wanted):
        if (side := square_side(places)) is None:
            raise ConfigError(
                f"positions for {places.shape[1] - 1} places do not fill a square, so they "
                f"cannot be resized to {wanted[0]} x {wanted[1]}"
            )
        grid = places[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # 1 d h w
        fitted = F.interpolate(grid.float(), size=wanted, mode="nearest").flatten(2)
        resized["pos_embed"] = torch.cat((places[:, :1], fitted.transpose(1, 2)), dim=1)
        notes.append(f"positions resized from {side} x {side} to {wanted[0]} x {wanted[1]} patches")
    times = state.get("time_embed")
    if times is not None and times.ndim == 3 and times.shape[1] not in (0, config.frames):
        fitted = F.interpolate(times.transpose(1, 2).float(), size=config.frames, mode="nearest")
        resized["time_embed"] = fitted.transpose(1, 2)
        notes.append(f"time positions resized from {times.shape[1]} to {config.frames} frames")
    return resized, tuple(notes)


def _our_name(name: str) -> str:
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name):
        block, module, kind = match.groups()
        return f"blocks.{block}.{_BLOCK.get(module, module)}.{kind}"
    return name.replace("patch_embed.proj.", "patch_embed.")


FACEBOOKRESEARCH = Family(
    name="facebookresearch",
    model=TimeSformerViT,
    example="blocks.0.attn.qkv.weight",
    anchor=r"blocks\.\d+\.attn\.qkv\.weight",
    members=r"(cls_token|pos_embed|time_embed|patch_embed\.proj\.\w+|norm\.\w+|blocks\..+)",
    head="head",
    check=check,
    prepare=from_paddle,
    translate=translate,
    infer=infer,
    adapt=adapt,
    free=frozenset(
        {"frames", "height", "width", "heads", "drop_path", "attn_dropout", "proj_dropout"}
    ),
    needed=frozenset({"frames", "channels", "height", "width", "num_classes", "dim", "heads"}),
    # From the data loader of the original; the file does not contain it.
    preprocessing=Preprocessing((0.45, 0.45, 0.45), (0.225, 0.225, 0.225), antialias=False),
    rules=KINETICS,
)
