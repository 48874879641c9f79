"""Resize and crop one frame (numpy only).

Axes: k crops, c channels, h height, w width. H and W are the size of the source frame.

The result has the same bits on every machine: each value is a sum in a fixed order, of products in
float32. A matrix product of BLAS would depend on the processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from model.preprocessing import Preprocessing

_SQUARE = Fraction(1)
_CENTRE = 1  # of the crops 0, 1 and 2
_BLOCK = 2**16  # values of a block of rows: its sums stay in the cache of a core
_CUBIC = {True: -0.5, False: -0.75}  # by antialias: the sharpness that torch and PIL take


@dataclass(frozen=True)
class Frame:
    """The frame that a model takes: its size, and how a source frame is resized to it.

    The attributes have the meaning of `Preprocessing`; `height` and `width` are in pixels.
    """

    height: int
    width: int
    short_side: int | None = None
    stretch: bool = False
    interpolation: str = "bilinear"
    antialias: bool = True
    crops: int = 1

    @classmethod
    def of(cls, preprocessing: Preprocessing, height: int, width: int) -> Frame:
        """Take what the preprocessing of a model says about its frames."""
        how = preprocessing
        size = (height, width, how.short_side, how.stretch)
        return cls(*size, how.interpolation, how.antialias, how.views.crops)

    def crops_of(self, image: np.ndarray, aspect: Fraction) -> np.ndarray:
        """Resize `(H, W, c)` pixels; return its crops `(k, c, h, w)` float32.

        `aspect` is the width of a source pixel over its height. A published resize by the short
        side takes pixels as square, whatever they are.
        """
        shown = aspect if self.short_side is None else _SQUARE
        places = range(3) if self.crops == 3 else (_CENTRE,)
        return np.stack([fit(image, self, aspect=shown, crop=place) for place in places])


def fit(
    image: np.ndarray, frame: Frame, *, aspect: Fraction = _SQUARE, crop: int = _CENTRE
) -> np.ndarray:
    """Resize `(H, W, c)` to cover the target; return a crop of it, `(c, h, w)` float32.

    Pixels of the result are square, unless the frame is stretched. With `short_side`, the shorter
    side of the resized frame has that many pixels, unless the resized frame would be too small to
    cover the target. `crop` is 0, 1 or 2: the start, the centre or the end of the longer side.
    """
    rows, columns = image.shape[:2]
    shown = rows * aspect.denominator, columns * aspect.numerator  # only their ratio counts
    if frame.stretch:
        shown = frame.height, frame.width
    height, width = _resized(*shown, frame.height, frame.width, frame.short_side)
    places = (crop, _CENTRE) if height > width else (_CENTRE, crop)
    down = _window(rows, height, frame.height, places[0], frame)
    along = _window(columns, width, frame.width, places[1], frame)
    seen = np.ascontiguousarray(image[:, along.first : along.end])
    resized = _resize_rows(down, seen)  # (h, W, c)
    resized = _resize_rows(along.from_first(), np.ascontiguousarray(resized.transpose(1, 2, 0)))
    resized = np.ascontiguousarray(resized.transpose(1, 2, 0))  # from (w, c, h)
    # A cubic curve overshoots at edges, and pixels do not.
    return resized if frame.interpolation == "bilinear" else resized.clip(0, 255)


class _Window(NamedTuple):
    """What each of o outputs along an axis takes: n source pixels from a start on.

    `starts` is `(o,)`, and `weights` is `(o, n)`.
    """

    starts: np.ndarray
    weights: np.ndarray

    @property
    def first(self) -> int:
        """The first source pixel that any output takes."""
        return int(self.starts.min())

    @property
    def end(self) -> int:
        """The source pixel after the last one that any output takes."""
        return int(self.starts.max()) + self.weights.shape[1]

    def from_first(self) -> _Window:
        """Count the source pixels from the first one that is taken."""
        return self._replace(starts=self.starts - self.first)


def _resize_rows(window: _Window, image: np.ndarray) -> np.ndarray:
    """Resize the first axis of `(H, ...)` pixels: `(h, ...)` float32."""
    rows = image.reshape(len(image), -1)
    made = np.empty((len(window.starts), rows.shape[1]), np.float32)
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(made), step):
        block = slice(start, start + step)
        starts, weights, sums = window.starts[block], window.weights[block], made[block]
        np.multiply(rows[starts], weights[:, :1], out=sums)
        term = np.empty_like(sums)
        for place in range(1, weights.shape[1]):
            np.multiply(rows[starts + place], weights[:, place, np.newaxis], out=term)
            sums += term
    return made.reshape(len(made), *image.shape[1:])


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


@lru_cache(maxsize=16)
def _window(source: int, resized: int, cropped: int, place: int, frame: Frame) -> _Window:
    """Return the source pixels of each output, and their weights: those that are not zero."""
    weights = _weights(source, resized, cropped, place, frame)
    taken = weights != 0
    first, last = taken.argmax(axis=1), source - 1 - taken[:, ::-1].argmax(axis=1)
    count = int((last - first).max()) + 1
    starts = np.minimum(first, source - count)
    return _Window(starts, np.take_along_axis(weights, starts[:, np.newaxis] + range(count), 1))


def _weights(source: int, resized: int, cropped: int, place: int, frame: Frame) -> np.ndarray:
    """Return weights `(cropped, source)` for the outputs of a crop of a resize of one axis.

    The weights of an output form a triangle, or a cubic curve, around its position. When the frame
    shrinks, an antialiased curve widens with the scale. Then every source pixel contributes, and
    detail that is too fine for the output is averaged and causes no aliasing.
    """
    scale = source / resized
    start = (resized - cropped) * place // 2
    centres = (np.arange(start, start + cropped) + 0.5) * scale  # (cropped,)
    wide = max(scale, 1.0) if frame.antialias else 1.0
    if frame.interpolation == "bilinear":
        distance = np.abs(np.arange(source) + 0.5 - centres[:, np.newaxis])
        weights = np.maximum(1 - distance / wide, 0)
    else:
        beyond = 0 if frame.antialias else 2  # without antialias, the edge pixels are repeated
        pixels = np.arange(-beyond, source + beyond) + 0.5
        distance = np.abs(pixels - centres[:, np.newaxis]) / wide
        weights = _cubic(distance, _CUBIC[frame.antialias])
        if beyond:
            weights[:, beyond] += weights[:, :beyond].sum(axis=1)
            weights[:, -beyond - 1] += weights[:, -beyond:].sum(axis=1)
            weights = weights[:, beyond:-beyond]
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel at distances `x`, which are not negative."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
