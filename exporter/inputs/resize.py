"""Resize and crop one frame (numpy only).

Axes: c channels, h height, w width; H, W are the clip's own size.
"""

from __future__ import annotations

import numpy as np


def fit(image: np.ndarray, height: int, width: int, short_side: int | None = None) -> np.ndarray:
    """Resize `(H, W, c)`, antialiased, to cover the target; crop the centre `(c, h, w)` float32.

    With `short_side`, the resize leaves the shorter side that many pixels, unless that is too small
    to cover the target.
    """
    rows, columns = image.shape[:2]
    resized = _resized(rows, columns, height, width, short_side)
    vertical = _resize_weights(rows, resized[0], height)  # (h, H)
    horizontal = _resize_weights(columns, resized[1], width)  # (w, W)
    # One channel at a time: a float32 copy of a whole 8K frame would be 400 MB.
    channels = (image[..., c].astype(np.float32) for c in range(image.shape[2]))
    return np.stack([vertical @ channel @ horizontal.T for channel in channels])


def _resized(
    rows: int, columns: int, height: int, width: int, short_side: int | None
) -> tuple[int, int]:
    """Height and width of the whole frame after the resize, in its own aspect."""
    if short_side is not None:
        # The longer side is rounded down, as by torchvision's and Hugging Face's resizes.
        short = min(rows, columns)
        resized = rows * short_side // short, columns * short_side // short
        if resized[0] >= height and resized[1] >= width:
            return resized
    if height * columns >= width * rows:  # the height decides the scale, the width overhangs
        return height, (2 * columns * height + rows) // (2 * rows)
    return (2 * rows * width + columns) // (2 * columns), width


def _resize_weights(source: int, resized: int, cropped: int) -> np.ndarray:
    """Weights `(cropped, source)` of the central outputs of an antialiased linear resize.

    A triangle around each output's position, as wide as the scale when shrinking: then every
    source pixel counts, and detail too fine for the output is averaged away, not folded back.
    """
    scale = source / resized
    start = (resized - cropped) // 2
    centres = (np.arange(start, start + cropped) + 0.5) * scale  # (cropped,)
    distance = np.abs(np.arange(source) + 0.5 - centres[:, np.newaxis])
    weights = np.maximum(1 - distance / max(scale, 1.0), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
