"""Weights of PaddleVideo's TimeSformer: the names of facebookresearch, linear maps transposed.

https://github.com/PaddlePaddle/PaddleVideo/blob/develop/paddlevideo/modeling/backbones/vit.py
"""

from __future__ import annotations

from dataclasses import replace

from model.families.base import is_transposed
from model.weights.file import WeightsFile


def from_paddle(weights: WeightsFile) -> WeightsFile:
    """Transpose the linear maps if the file stores them as `(in, out)`; else change nothing."""
    if not is_transposed(weights.state.get("blocks.0.attn.qkv.weight")):
        return weights
    state = {
        name: tensor.T.contiguous() if tensor.ndim == 2 else tensor
        for name, tensor in weights.state.items()
    }
    note = (
        "linear maps of PaddlePaddle transposed; norm_eps 1e-06 assumed, as in the configurations "
        "of PaddleVideo: give norm_eps with --config if yours differs"
    )
    notes = (*weights.notes, note)
    if "blocks.0.attn.qkv.bias" not in state:
        notes += ("without a bias of qkv, as ppTimeSformer, which takes pixels in [0, 1]",)
    return replace(weights, state=state, notes=notes)
