"""The fixed synthetic clips: parity is judged on them and on real clips (numpy only)."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

Shape = tuple[int, int, int, int]  # f frames, c channels, h height, w width

# Side of a checkerboard cell in pixels. It is odd, so patches of 14, 16 and 32 pixels see the
# pattern at different phases. If all tokens were equal, swapped tokens would not be noticed.
CELL = 5
CONTRAST = 10.0  # far outside the range of normalised pixels: large logits, saturated softmax


def synthetic_inputs(
    frames: int,
    channels: int,
    height: int,
    width: int,
    seed: int = 0,
    names: Collection[str] | None = None,
) -> list[tuple[str, np.ndarray]]:
    """Return the eight named clips `(f, c, h, w)` float32, in the model's (normalised) units.

    With `names`, only the clips among them that have these names are made. The same arguments give
    the same values on every machine. The clips are random normal noise (three times), constant
    frames (two kinds), large contrast, and motion (two kinds). The docstring of each generator says
    which faults its clip reveals.
    """
    shape = frames, channels, height, width
    return [
        (name, np.ascontiguousarray(make(np.random.Generator(_bits(seed, i)), shape), np.float32))
        for i, (name, make) in enumerate(CLIPS.items())
        if names is None or name in names
    ]


def _bits(seed: int, clip: int) -> np.random.PCG64:
    return np.random.PCG64([seed, clip])  # one stream per clip: a new clip changes no other clip


def _normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.standard_normal(shape)


def _constant(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """One value everywhere: all tokens are equal, and LayerNorm divides by its least variance."""
    return np.full(shape, rng.uniform(0.5, 1.0))


def _constant_per_frame(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """One value per frame and channel: tokens differ only between frames."""
    return np.broadcast_to(rng.uniform(-2, 2, (*shape[:2], 1, 1)), shape)


def _checkerboard(_rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Cells of plus and minus `CONTRAST`; the sign changes with each frame and channel."""
    f, c, y, x = np.ogrid[tuple(slice(size) for size in shape)]
    return CONTRAST * (1 - 2 * ((f + c + y // CELL + x // CELL) % 2))


def _moving_gradient(_rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """A smooth ramp in [-2, 2] that moves to the right: height, width and time all differ."""
    f, c, y, x = np.ogrid[tuple(slice(size) for size in shape)]
    phase = x / shape[3] + 0.5 * y / shape[2] - f / shape[0] + c / (2 * shape[1])
    return 4 * np.abs(2 * (phase - np.floor(phase)) - 1) - 2


def _moving_square(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """A bright square that crosses noise along the diagonal: it is local in space and in time."""
    frames, _, height, width = shape
    clip = 0.5 * rng.standard_normal(shape)
    side = max(1, min(height, width) // 4)
    for f in range(frames):
        top = f * (height - side) // max(1, frames - 1)
        left = f * (width - side) // max(1, frames - 1)
        clip[f, :, top : top + side, left : left + side] = 3.0
    return clip


CLIPS: dict[str, Callable[[np.random.Generator, Shape], np.ndarray]] = {
    "normal-0": _normal,
    "normal-1": _normal,
    "normal-2": _normal,
    "constant": _constant,
    "constant-per-frame": _constant_per_frame,
    "checkerboard": _checkerboard,
    "moving-gradient": _moving_gradient,
    "moving-square": _moving_square,
}
