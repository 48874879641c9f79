"""The fixed synthetic clips on which parity is judged beside real ones (numpy only)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Shape = tuple[int, int, int, int]  # f frames, c channels, h height, w width

# A pattern's period in pixels. Odd, so that the patches of a model (16, 14, 32) see it at different
# phases: where all tokens are alike, swapped tokens go unseen.
CELL = 5
CONTRAST = 10.0  # far outside what normalised pixels reach: large logits, saturated softmax


def synthetic_inputs(
    frames: int, channels: int, height: int, width: int, seed: int = 0
) -> list[tuple[str, np.ndarray]]:
    """Give the eight named clips `(f, c, h, w)` float32, in the model's (normalised) units.

    The same arguments give the same values on every machine. Random normal noise (three times),
    constant frames, large contrast, and motion: what each lays bare is beside its generator.
    """
    shape = frames, channels, height, width
    return [
        (name, np.ascontiguousarray(make(np.random.Generator(_bits(seed, i)), shape), np.float32))
        for i, (name, make) in enumerate(CLIPS.items())
    ]


def _bits(seed: int, clip: int) -> np.random.PCG64:
    return np.random.PCG64([seed, clip])  # one stream per clip: a new clip leaves the others alone


def _normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.standard_normal(shape)


def _constant(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """One value for all: every token is alike, LayerNorm divides by the least variance."""
    return np.full(shape, rng.uniform(0.5, 1.0))


def _constant_per_frame(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """One value per frame and channel: only time tells the tokens apart."""
    return np.broadcast_to(rng.uniform(-2, 2, (*shape[:2], 1, 1)), shape)


def _checkerboard(_rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Cells of plus and minus `CONTRAST`, that swap with each frame and channel."""
    f, c, y, x = np.ogrid[tuple(slice(size) for size in shape)]
    return CONTRAST * (1 - 2 * ((f + c + y // CELL + x // CELL) % 2))


def _moving_gradient(_rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """A smooth ramp in [-2, 2] that wanders to the right: height, width and time all differ."""
    f, c, y, x = np.ogrid[tuple(slice(size) for size in shape)]
    phase = x / shape[3] + 0.5 * y / shape[2] - f / shape[0] + c / (2 * shape[1])
    return 4 * np.abs(2 * (phase - np.floor(phase)) - 1) - 2


def _moving_square(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """A bright square that crosses noise along the diagonal: local in space and in time."""
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
