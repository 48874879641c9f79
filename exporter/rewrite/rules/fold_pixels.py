"""The normalisation of pixels folded into the patch embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from exporter.rewrite.pixels import TakesPixels
from exporter.rewrite.rule import Refusal, Rewrite
from model.block import PatchEmbedding
from model.classifier import VideoClassifier
from model.precision import RoundedConv2d

Embedding = PatchEmbedding | RoundedConv2d


@dataclass(frozen=True)
class PixelPlace:
    """A model that takes pixels, and its patch embedding."""

    model: TakesPixels
    embedding: Embedding


class FoldPixelsRewrite(Rewrite[PixelPlace]):
    """Let the patch embedding read pixels as they are.

        W ((x / 255 - mean) / std) + b = (W / (255 std)) x + (b - W mean / std)

    Whole numbers up to 255 are exact in every precision that is offered. Normalised pixels are not.
    A model that takes normalised clips has no such place.
    """

    name = "fold_pixels"

    def find(self, model: VideoClassifier, clips: int) -> list[PixelPlace]:  # noqa: D102
        if not isinstance(model, TakesPixels):
            return []
        embeddings = (module for module in model.modules() if isinstance(module, Embedding))
        return [PixelPlace(model, embedding) for embedding in embeddings][:1]

    def fits(self, place: PixelPlace) -> Refusal | None:  # noqa: D102
        if place.model.pixels_folded:
            return Refusal("it is applied already")
        if place.embedding.bias is None:
            return Refusal("the patch embedding has no bias")
        return None

    @torch.no_grad()
    def apply(self, place: PixelPlace) -> None:
        """Change weight and bias in place, computed in float64 and rounded once."""
        mean, std = place.model.pixel_mean.double(), place.model.pixel_std.double()
        weight, bias, channels = place.embedding.weight, place.embedding.bias, len(mean)
        assert bias is not None
        if isinstance(place.embedding, PatchEmbedding):
            by_channel = weight.view(len(weight), -1, channels)  # d (p1 p2) c
        else:
            by_channel = weight.view(len(weight), channels, -1).mT
        before = by_channel.double()
        bias.sub_((before * (mean / std)).sum((1, 2)))
        by_channel.copy_(before / (255 * std))
        place.model.pixels_folded = True


fold_pixels = FoldPixelsRewrite()
