"""The fixed synthetic clips that look like pictures, or look at every place (numpy only).

A fault that shows only on a black frame, at one frame, in one corner, or in the range of pixels is
not seen on noise. All values come from uniform draws and sums, so that they are the same on every
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

Shape = tuple[int, int, int, int]  # f frames, c channels, h height, w width

_SEED = 18
_LIT = 16  # pixels; the side of the squares that are lit in turn
_CORNER = 3  # pixels; the side of the pattern of a corner


def picture_inputs(
    frames: int, channels: int, height: int, width: int, names: Collection[str] | None = None
) -> list[tuple[str, bool, np.ndarray]]:
    """Return eight named clips `(f, c, h, w)` float32, and whether their values are pixels.

    Pixels are in [0, 1]. The other clips are in the model's (normalised) units. With `names`, only
    the clips among them that have these names are made.
    """
    shape = frames, channels, height, width
    made = []
    for i, (name, (pixels, make)) in enumerate(CLIPS.items()):
        if names is not None and name not in names:
            continue
        rng = np.random.Generator(np.random.PCG64([_SEED, i]))
        made.append((name, pixels, np.ascontiguousarray(make(rng, shape), np.float32)))
    return made


def _black(_rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """All pixels are 0."""
    return np.zeros(shape)


def _white(_rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """All pixels are 1."""
    return np.ones(shape)


def _unit(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Values in [0, 1] that vary; the last frame is zero. They are not normalised."""
    clip = rng.random(shape)
    clip[-1] = 0
    return clip


def _natural(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """A picture with the statistics of nature: the larger a detail, the more contrast it has.

    It is a sum of cells of 1, 2, 4 and more pixels. It moves to the right, and brightens in time.
    """
    frames, channels, height, width = shape
    picture = np.zeros((channels, height, width))
    side = 1
    while side <= 2 * max(height, width):
        cells = rng.random((channels, -(-height // side), -(-width // side))) - 0.5
        large = cells.repeat(side, axis=1).repeat(side, axis=2)[:, :height, :width]
        picture += side**0.5 * large
        side *= 2
    low, span = picture.min(), max(float(np.ptp(picture)), 1e-6)
    picture = (picture - low) / span
    moved = np.stack([np.roll(picture, f, axis=-1) for f in range(frames)])
    light = 0.6 + 0.4 * np.arange(1, frames + 1) / frames
    return moved * light[:, None, None, None]


def _odd_frames(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Natural frames; one in the middle is black, and the first is the mean of the others."""
    clip = _natural(rng, shape)
    if shape[0] > 1:
        clip[shape[0] // 2] = 0
    if shape[0] > 2:
        clip[0] = clip[1:].mean(0)
    return clip


def _places(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Grey, with a pattern of its own in each corner of each frame, and a lit square.

    The square stands at another place in every frame; the places run over the whole frame.
    """
    frames, _, height, width = shape
    clip = np.full(shape, 0.5)
    high, wide = min(_LIT, height), min(_LIT, width)
    rows, columns = -(-height // high), -(-width // wide)
    for f in range(frames):
        place = f * rows * columns // frames
        top, left = place // columns * high, place % columns * wide
        clip[f, :, top : top + high, left : left + wide] = 0.9
    for y in (slice(0, _CORNER), slice(-_CORNER, None)):
        for x in (slice(0, _CORNER), slice(-_CORNER, None)):
            clip[:, :, y, x] = rng.random(clip[:, :, y, x].shape)
    return clip


def _lit_in_turn(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Black, with a few lit pixels in every square, of another brightness in each frame."""
    clip = np.zeros(shape)
    step = max(1, min(_LIT, shape[2], shape[3]) // 2)
    clip[:, :, ::step, ::step] = rng.random(clip[:, :, ::step, ::step].shape)
    return clip


def _extremes(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Each pixel is 0 or 1: the ends of what the preprocessing gives."""
    return (rng.random(shape) < 0.5).astype(np.float64)


CLIPS: dict[str, tuple[bool, Callable[[np.random.Generator, Shape], np.ndarray]]] = {
    "black": (True, _black),
    "white": (True, _white),
    "unit": (False, _unit),
    "natural": (True, _natural),
    "odd-frames": (True, _odd_frames),
    "places": (True, _places),
    "lit-in-turn": (True, _lit_in_turn),
    "extremes": (True, _extremes),
}
