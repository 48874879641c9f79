"""State dicts of OpenMMLab's mmaction2: the function of facebookresearch under other names.

https://github.com/open-mmlab/mmaction2/blob/main/mmaction/models/backbones/timesformer.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from model.families import facebookresearch
from model.families.base import Family
from model.families.facebookresearch import FACEBOOKRESEARCH, translate_names
from model.preprocessing import Preprocessing
from model.sampling import Sampling, Views
from model.weights.file import WeightsFile

_ARGUMENTS = {
    "num_frames": "frames",
    "in_channels": "channels",
    "embed_dims": "dim",
    "num_heads": "heads",
    "num_transformer_layers": "depth",
    "dropout_ratio": "proj_dropout",
}
PUBLISHED = Sampling("dense", "steps", rate=32, place="centre", past_end="loop")
_LAYER = re.compile(r"transformer_layers\.layers\.(\d+)\.(.+)")
_PARTS = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias", "out_proj": "proj"}
# Modules of a layer -> modules of a block of facebookresearch. In the divided scheme the attention
# through time is number 0 and holds its norm.
_DIVIDED = {
    "attentions.0.norm": "temporal_norm1",
    "attentions.0.attn": "temporal_attn",
    "attentions.0.temporal_fc": "temporal_fc",
    "attentions.1.norm": "norm1",
    "attentions.1.attn": "attn",
    "ffns.0.norm": "norm2",
    "ffns.0.layers.0.0": "mlp.fc1",
    "ffns.0.layers.1": "mlp.fc2",
}
_ONE_STEP = {
    "norms.0": "norm1",
    "norms.1": "norm2",
    "attentions.0.attn": "attn",
    "ffns.0.layers.0.0": "mlp.fc1",
    "ffns.0.layers.1": "mlp.fc2",
}


def translate(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the arguments of the original backbone: `img_size`, `embed_dims`, ..."""
    return translate_names(given, _ARGUMENTS)


def prepare(weights: WeightsFile) -> WeightsFile:
    """Rename the weights to those of facebookresearch."""
    divided = any(".attentions.1." in name for name in weights.state)
    modules = _DIVIDED if divided else _ONE_STEP
    state = {_rename(name, modules): tensor for name, tensor in weights.state.items()}
    return replace(weights, state=state)


def _rename(name: str, modules: Mapping[str, str]) -> str:
    if match := _LAYER.fullmatch(name):
        layer, rest = match.groups()
        for theirs, ours in modules.items():
            if rest.startswith(f"{theirs}."):
                part = rest.removeprefix(f"{theirs}.")
                for other, own in _PARTS.items():
                    if part == other or part.startswith(f"{other}."):
                        part = own + part.removeprefix(other)
                return f"blocks.{layer}.{ours}.{part}"
    name = name.replace("patch_embed.projection.", "patch_embed.proj.")
    return name.replace("cls_head.fc_cls.", "head.")


MMACTION2 = Family(
    name="mmaction2",
    model=FACEBOOKRESEARCH.model,
    example="backbone.transformer_layers.layers.0.attentions.0.attn.in_proj_weight",
    anchor=r"transformer_layers\.layers\.\d+\.attentions\.0\.attn\.in_proj_weight",
    members=r"(cls_token|pos_embed|time_embed|patch_embed\.projection\.\w+|norm\.\w+"
    r"|transformer_layers\.layers\..+)",
    head="cls_head.fc_cls",
    translate=translate,
    prepare=prepare,
    infer=facebookresearch.infer,
    adapt=facebookresearch.adapt,
    free=FACEBOOKRESEARCH.free,
    needed=FACEBOOKRESEARCH.needed,
    # The test pipelines of the original subtract 127.5 and divide by 127.5, of 255.
    # They all take 8 frames 32 apart, and average the probabilities of three crops.
    preprocessing=Preprocessing(
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        antialias=False,
        sampling=PUBLISHED,
        views=Views(1, 3, "probabilities"),
        assumed="the published test pipeline of mmaction2",
    ),
    rules=PUBLISHED,
)
