"""Preprocessing inside the model: the model takes the pixels of a decoder or a camera."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from exporter.rewrite.places import become
from model.classifier import VideoClassifier


class TakesPixels(nn.Module):
    """A model that takes uint8 clips `(b, f, h, w, c)`, sampled, resized and cropped beforehand.

    Attributes:
        pixel_mean: Mean of the preprocessing, `(c,)`.
        pixel_std: Standard deviation of the preprocessing, `(c,)`.
        pixels_folded: True if the weights of the patch embedding include the normalisation.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    pixels_folded = False

    def forward(self, video: Tensor, *more: Tensor) -> Tensor:
        """Classify clips: uint8 `(b, f, h, w, c) -> (b, classes)` logits."""
        x = video.to(self.pixel_mean.dtype)  # first: TensorRT supports uint8 only as an input
        if not self.pixels_folded:
            x = (x / 255 - self.pixel_mean) / self.pixel_std
        return super().forward(x.permute(0, 1, 4, 2, 3), *more)


def take_pixels(model: VideoClassifier) -> None:
    """Move scaling, normalisation and layout of the clips into a model, in place.

    Mean and standard deviation are rounded to float32, as in the preprocessing outside the model.
    """
    become(model, TakesPixels)
    for name in ("mean", "std"):
        values = torch.tensor(getattr(model.preprocessing, name), dtype=torch.float32)
        model.register_buffer(f"pixel_{name}", values, persistent=False)
    model.preprocessing = replace(model.preprocessing, embedded=True)
    model.notes += ("takes uint8 pixels (b, f, h, w, c) and normalises them itself",)
