"""The normalisation of pixels folded into the patch embedding, which reads nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.rewrite.pixels import TakesPixels
from model.block import PatchEmbedding
from model.classifier import VideoClassifier
from model.precision import RoundedConv2d


def fold_pixels(model: VideoClassifier) -> int:
    """Let the patch embedding read pixels as they are.

        W ((x / 255 - mean) / std) + b = (W / (255 std)) x + (b - W mean / std)

    Whole numbers up to 255 are exact in every precision that is offered, unlike what normalising
    makes of them. It does not fire in models that take normalised clips.

    Returns:
        At how many places it fired: one or none.
    """
    if not isinstance(model, TakesPixels) or model.pixels_folded:
        return 0
    for module in model.modules():
        if isinstance(module, (PatchEmbedding, RoundedConv2d)) and module.bias is not None:
            _fold(module, module.bias, model.pixel_mean.double(), model.pixel_std.double())
            model.pixels_folded = True
            return 1
    return 0


@torch.no_grad()
def _fold(
    embedding: PatchEmbedding | RoundedConv2d, bias: Tensor, mean: Tensor, std: Tensor
) -> None:
    """In place, computed in float64 and rounded once."""
    weight, channels = embedding.weight, len(mean)
    if isinstance(embedding, PatchEmbedding):
        by_channel = weight.view(len(weight), -1, channels)  # d (p1 p2) c
    else:
        by_channel = weight.view(len(weight), channels, -1).mT
    before = by_channel.double()
    bias.sub_((before * (mean / std)).sum((1, 2)))
    by_channel.copy_(before / (255 * std))
