"""Resize and crop one frame (numpy only).

Axes: c channels, h height, w width. H and W are the size of the source frame.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

_SQUARE = Fraction(1)


def fit(
    image: np.ndarray,
    height: int,
    width: int,
    short_side: int | None = None,
    *,
    aspect: Fraction = _SQUARE,
) -> np.ndarray:
    """Resize `(H, W, c)` to cover the target; return its centre crop `(c, h, w)` float32.

    The resize is antialiased. `aspect` is the width of a source pixel over its height; pixels of
    the result are square. With `short_side`, the shorter side of the resized frame has that
    many pixels, unless the resized frame would be too small to cover the target.
    """
    rows, columns = image.shape[:2]
    shown = rows * aspect.denominator, columns * aspect.numerator  # only their ratio counts
    resized = _resized(*shown, height, width, short_side)
    vertical = _resize_weights(rows, resized[0], height)  # (h, H)
    horizontal = _resize_weights(columns, resized[1], width)  # (w, W)
    # One channel at a time: a float32 copy of a whole 8K frame would be 400 MB.
    channels = (image[..., c].astype(np.float32) for c in range(image.shape[2]))
    return np.stack([vertical @ channel @ horizontal.T for channel in channels])


def _resized(
    rows: int, columns: int, height: int, width: int, short_side: int | None
) -> tuple[int, int]:
    """Return height and width of the whole frame after the resize; the aspect ratio is kept."""
    if short_side is not None:
        # Round the longer side down, as torchvision and Hugging Face do.
        short = min(rows, columns)
        resized = rows * short_side // short, columns * short_side // short
        if resized[0] >= height and resized[1] >= width:
            return resized
    if height * columns >= width * rows:  # the height sets the scale; the width is cropped
        return height, (2 * columns * height + rows) // (2 * rows)
    return (2 * rows * width + columns) // (2 * columns), width


def _resize_weights(source: int, resized: int, cropped: int) -> np.ndarray:
    """Return weights `(cropped, source)` for the central outputs of an antialiased linear resize.

    The weights of an output form a triangle around its position. When the frame shrinks, the
    triangle widens with the scale. Then every source pixel contributes, and detail that is too
    fine for the output is averaged and causes no aliasing.
    """
    scale = source / resized
    start = (resized - cropped) // 2
    centres = (np.arange(start, start + cropped) + 0.5) * scale  # (cropped,)
    distance = np.abs(np.arange(source) + 0.5 - centres[:, np.newaxis])
    weights = np.maximum(1 - distance / max(scale, 1.0), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
