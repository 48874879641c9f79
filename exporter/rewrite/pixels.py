"""Preprocessing inside the model: it takes pixels, as a decoder or a camera gives them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from exporter.rewrite.places import become
from model.classifier import VideoClassifier


class TakesPixels(nn.Module):
    """A model whose clips are uint8 `(b, f, h, w, c)`: sampled, resized and cropped, no more.

    Attributes:
        pixel_mean: Of the preprocessing, `(c,)`.
        pixel_std: The same.
        pixels_folded: Whether the patch embedding normalises.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    pixels_folded = False

    def forward(self, video: Tensor, *more: Tensor) -> Tensor:
        """Classify clips: uint8 `(b, f, h, w, c) -> (b, classes)` logits."""
        x = video.to(self.pixel_mean.dtype)  # at once: TensorRT knows no uint8 but as an input
        if not self.pixels_folded:
            x = (x / 255 - self.pixel_mean) / self.pixel_std
        return super().forward(x.permute(0, 1, 4, 2, 3), *more)


def take_pixels(model: VideoClassifier) -> None:
    """Let a model scale, normalise and lay out its clips itself, in place.

    Mean and deviation are rounded to float32, as they are where clips are normalised outside.
    """
    become(model, TakesPixels)
    for name in ("mean", "std"):
        values = torch.tensor(getattr(model.preprocessing, name), dtype=torch.float32)
        model.register_buffer(f"pixel_{name}", values, persistent=False)
    model.preprocessing = replace(model.preprocessing, embedded=True)
    model.notes += ("takes uint8 pixels (b, f, h, w, c) and normalises them itself",)
