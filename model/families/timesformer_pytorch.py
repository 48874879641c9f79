"""State dicts of timesformer-pytorch: infer the configuration from names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import ConfigError, image_sides
from model.families.base import (
    Family,
    Told,
    count_blocks,
    infer_frames,
    infer_patches,
    keep,
    rename,
    shape_of,
)
from model.timesformer import TimeSformer
from model.weights.file import WeightsFile

_PATCHES = "to_patch_embedding.weight"
_QKV = "fn.to_qkv.weight"
_CLASSES = "to_out.1.weight"
_ARGUMENTS = {"num_frames": "frames", "image height": "height", "image width": "width"}


def translate(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the arguments of the published constructor: `num_frames`, `image_size`."""
    entries = dict(given)
    for name, only in (("attn", "regular"), ("scheme", "divided")):
        if (value := entries.pop(name, only)) != only:
            raise ConfigError(f"timesformer_pytorch has only {name} {only!r}: got {value!r}")
    if "image_size" in entries:
        height, width = image_sides(entries.pop("image_size"))
        entries |= {"image height": height, "image width": width}
    return rename(entries, _ARGUMENTS)


def infer(weights: WeightsFile, given: Mapping[str, Any]) -> dict[str, Told]:
    """Infer the configuration from the names and shapes of a published state dict."""
    state = weights.state
    told = {"depth": count_blocks("layers", state)}
    for key, name, axis in (("cls_token", "dim", -1), (_CLASSES, "num_classes", 0)):
        if key in state:
            told[name] = Told(state[key].shape[axis], shape_of(key, state[key]))
    rotary, positions = "frame_rot_emb.inv_freqs", "pos_emb.weight"
    if rotary in state:
        told["rotary_emb"] = Told(True, rotary)
        told["dim_head"] = Told(2 * len(state[rotary]), shape_of(rotary, state[rotary]))
    elif positions in state:
        told["rotary_emb"] = Told(False, positions)
    known = dict(given) | {name: entry.value for name, entry in told.items()}
    told |= _infer_heads(state, known)
    if _PATCHES in state:
        told |= infer_patches(_PATCHES, state[_PATCHES], given)
    if positions in state and {"height", "width"} <= given.keys() and "patch_size" in told:
        told |= infer_frames(state[positions], given, told["patch_size"].value)
    return told


def _infer_heads(state: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Told]:
    """Infer `shift_tokens`, and `heads` from `dim_head` or the reverse.

    The weights contain only the product `heads` x `dim_head`, so one of the two must be known.
    """
    shifted = f"layers.0.0.fn.{_QKV}"
    shifts = shifted in state
    told = {"shift_tokens": Told(shifts, f"its keys, having {'' if shifts else 'no '}{shifted}")}
    key = shifted if shifts else f"layers.0.0.{_QKV}"
    if key not in state:
        return told
    inner = state[key].shape[0] // 3
    where = shape_of(key, state[key])
    for name, other in (("dim_head", "heads"), ("heads", "dim_head")):
        value = known.get(name)
        if isinstance(value, int) and value > 0:
            if inner % value:
                raise ConfigError(
                    f"{where} has {inner} channels for queries, which is not a multiple of "
                    f"{name} {value}"
                )
            return {**told, other: Told(inner // value, f"{where} with {name} {value}")}
    return told


TIMESFORMER_PYTORCH = Family(
    name="timesformer_pytorch",
    model=TimeSformer,
    example="layers.0.0.fn.to_qkv.weight",
    anchor=r"layers\.\d+\.\d+(\.fn)+\.to_qkv\.weight",
    members=r"(cls_token|(to_patch_embedding|layers|to_out|pos_emb|frame_rot_emb|image_rot_emb)\..+)",
    translate=translate,
    infer=infer,
    adapt=keep,
    free=frozenset({"attn_dropout", "ff_dropout"}),
    needed=frozenset({"frames", "channels", "height", "width", "num_classes", "dim", "dim_head"}),
)
