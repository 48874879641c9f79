"""`fc_t` folded into the output projection before it: two linear maps in a row are one."""

from __future__ import annotations

import torch
from torch import nn

from exporter.rewrite.places import Folded, places
from model.attention import FastAttention
from model.classifier import VideoClassifier


def fold_fc(model: VideoClassifier) -> int:
    """Fold the projection that follows an attention into the attention's own.

        F (W_o u + b_o) + b_f = (F W_o) u + (F b_o + b_f)

    Between the two only tokens change places, and dropout does nothing outside training. It does
    not fire where the query is added in between (fastformer), nor after the last step of a block,
    which has no such projection.

    Returns:
        At how many places it fired.
    """
    fired = 0
    for place in places(model):
        name = f"fc_{place.step.name}"
        fc = place.block._modules.get(name)
        if isinstance(fc, nn.Linear) and not isinstance(place.attention, FastAttention):
            place.attention.to_out = _product(fc, place.attention.to_out)
            place.block.add_module(name, Folded())
            fired += 1
    return fired


@torch.no_grad()
def _product(after: nn.Linear, before: nn.Linear) -> nn.Linear:
    """`x -> after(before(x))`, computed in float64 and rounded once."""
    weight = after.weight.double() @ before.weight.double()
    bias = after.weight.double() @ before.bias.double() + after.bias.double()
    folded = nn.Linear(before.in_features, after.out_features).to(before.weight)
    folded.weight.copy_(weight)
    folded.bias.copy_(bias)
    return folded
