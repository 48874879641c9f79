"""State dicts of the published FastTimeSformer: infer the configuration from names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

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
from model.fast_timesformer import FastTimeSformer
from model.weights.file import WeightsFile


def infer(weights: WeightsFile, given: Mapping[str, Any]) -> dict[str, Told]:
    """Infer the configuration from the names and shapes of a published state dict."""
    state = weights.state
    told = _infer_blocks(state)
    for key, name, axis in (("cls_token", "dim", -1), ("to_out.fn.weight", "num_classes", 0)):
        if key in state:
            told[name] = Told(state[key].shape[axis], shape_of(key, state[key]))
    rotary, positions = "frame_rot_emb.inv_freqs", "pos_emb.weight"
    if rotary in state:
        told["rotary_emb"] = Told(True, rotary)
        told.setdefault("dim_head", Told(2 * len(state[rotary]), shape_of(rotary, state[rotary])))
    elif positions in state:
        told["rotary_emb"] = Told(False, positions)
    if "project_in.weight" in state:
        told |= infer_patches("project_in.weight", state["project_in.weight"], given)
    if positions in state and {"height", "width"} <= given.keys() and "patch_size" in told:
        told |= infer_frames(state[positions], given, told["patch_size"].value)
    return told


def _infer_blocks(state: Mapping[str, Tensor]) -> dict[str, Told]:
    """Infer depth, mechanism, scheme and, for two of the mechanisms, `dim_head`."""
    told = {
        "depth": count_blocks("blocks", state),
        "attn_mechanism": Told("regular", "the absence of Wq and projection_matrix"),
        "attn_type": Told("joint", "the absence of attn_t"),
    }
    for key, tensor in state.items():
        for ending, mechanism in (
            (".fn.Wq.weight", "fastformer"),
            (".fn.projection_matrix", "performer"),
        ):
            if key.endswith(ending):
                told["attn_mechanism"] = Told(mechanism, key)
                told["dim_head"] = Told(tensor.shape[-1], shape_of(key, tensor))
        if ".attn_t." in key:
            told["attn_type"] = Told("divided", key)
    return told


FAST_TIMESFORMER = Family(
    name="fast_timesformer",
    model=FastTimeSformer,
    example="blocks.0.attn_s.fn.to_qkv.weight",
    anchor=r"blocks\.\d+\.attn_s\.fn\..+",
    members=r"(cls_token|(project_in|blocks|to_out|pos_emb|frame_rot_emb|image_rot_emb)\..+)",
    translate=lambda given: rename(given, {"attn": "attn_mechanism", "scheme": "attn_type"}),
    infer=infer,
    adapt=keep,
    free=frozenset({"frames_first", "heads", "drop_path", "attn_dropout", "proj_dropout"}),
    needed=frozenset({"frames", "channels", "height", "width", "num_classes", "dim_head"}),
)
