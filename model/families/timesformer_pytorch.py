"""State dicts of the published timesformer-pytorch: names, shapes, and what they do not tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
from model.weights_file import WeightsFile

_PATCHES, _QKV, _CLASSES = "to_patch_embedding.weight", "fn.to_qkv.weight", "to_out.1.weight"
_ARGUMENTS = {"num_frames": "frames", "image height": "height", "image width": "width"}


def recognises(keys: Collection[str]) -> bool:
    """The attention of a layer stands under its number, as `layers.0.1.fn`."""
    return any(key.startswith("layers.") and key.endswith(f".{_QKV}") for key in keys)


def translate(given: Mapping[str, Any]) -> dict[str, Any]:
    """Names of the published constructor: `num_frames`, `image_size`."""
    entries = dict(given)
    for name, only in (("attn", "regular"), ("scheme", "divided")):
        if (value := entries.pop(name, only)) != only:
            raise ConfigError(f"timesformer_pytorch has {name} {only!r} alone: got {value!r}")
    if "image_size" in entries:
        height, width = image_sides(entries.pop("image_size"))
        entries |= {"image height": height, "image width": width}
    return rename(entries, _ARGUMENTS)


def infer(weights: WeightsFile, given: Mapping[str, Any]) -> dict[str, Told]:
    """Read the configuration off the names and shapes of a published state dict."""
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
    told |= _infer_heads(state, {**given, **{name: told[name].value for name in told}})
    if _PATCHES in state:
        told |= infer_patches(_PATCHES, state[_PATCHES], given)
    if positions in state and {"height", "width"} <= given.keys() and "patch_size" in told:
        told |= infer_frames(state[positions], given, told["patch_size"].value)
    return told


def _infer_heads(state: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Told]:
    """Heads or their channels, of which the weights tell the product; and what stands between."""
    shifted = f"layers.0.0.fn.{_QKV}"
    shifts = shifted in state
    told = {"shift_tokens": Told(shifts, f"having {'' if shifts else 'no '}{shifted}")}
    key = shifted if shifts else f"layers.0.0.{_QKV}"
    if key not in state:
        return told
    inner, where = state[key].shape[0] // 3, shape_of(key, state[key])
    for name, other in (("dim_head", "heads"), ("heads", "dim_head")):
        value = known.get(name)
        if isinstance(value, int) and value > 0:
            if inner % value:
                raise ConfigError(
                    f"{where} has {inner} channels for queries, no multiple of {name} {value}"
                )
            return {**told, other: Told(inner // value, f"{where} with {name} {value}")}
    return told


TIMESFORMER_PYTORCH = Family(
    name="timesformer_pytorch",
    model=TimeSformer,
    example="layers.0.0.fn.to_qkv.weight",
    recognises=recognises,
    translate=translate,
    infer=infer,
    adapt=keep,
    free=frozenset({"attn_dropout", "ff_dropout"}),
    needed=frozenset({"frames", "channels", "height", "width", "num_classes", "dim", "dim_head"}),
)
