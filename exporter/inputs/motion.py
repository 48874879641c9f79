"""The built-in labelled task: in which direction shapes move, and how fast (numpy only).

Axes: n clips, f frames, c channels, h height, w width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from exporter.errors import UsageError

FPS = 15.0  # frames per second that the clips of the task are taken to have
# Unit: sides of the frame per frame, so the task is the same at every resolution. At the usual size
# (224 pixels, patches of 16) a step is not a whole number of patches, so shapes do not align.
SPEEDS: Mapping[str, float] = {"slow": 0.04, "fast": 0.1}
DIRECTIONS: Mapping[str, tuple[int, int]] = {  # down, across
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
}
MOTION_LABELS: tuple[str, ...] = tuple(f"{way} {speed}" for way in DIRECTIONS for speed in SPEEDS)
_VELOCITIES = [
    (down * speed, across * speed)
    for down, across in DIRECTIONS.values()
    for speed in SPEEDS.values()
]
LEAST_FRAMES, LEAST_SIDE = 2, 16
_SMALLEST = {
    "count": 1,
    "frames": LEAST_FRAMES,
    "height": LEAST_SIDE,
    "width": LEAST_SIDE,
    "channels": 1,
    "finer": 1,
    "seed": 0,
}
# The largest number of periods of the background along a side. Its waves are longer than a shape.
_WAVES = 2


def motion_clips(
    count: int,
    frames: int,
    height: int,
    width: int,
    *,
    seed: int,
    channels: int = 3,
    first: int = 0,
    finer: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Make clips of moving shapes `(n, f, c, h, w)` float32 in [0, 1], and labels `(n,)` int64.

    A clip shows one to three shapes: discs, squares, triangles or crosses. All shapes of a clip
    move with the same velocity over a still background. A shape that leaves the frame comes back
    on the opposite side. Clip i has label `i % 8`, an index into `MOTION_LABELS`. Clip i depends
    on the seed and on i, not on `count`.

    A single frame does not tell the label. The shapes, sizes, colours, light, background and noise
    are drawn independently of the label. The start of a shape is also independent of the label: it
    is uniform on the torus. Until frame f the shape moves by a fixed offset, and a uniform place
    plus an offset on a torus is uniform again. So one frame has the same distribution for every
    label, and only the difference between frames tells the label.

    Args:
        count: Number of clips n.
        frames: Number of frames f of a clip, at least 2.
        height: Height h in pixels, at least 16.
        width: Width w in pixels, at least 16.
        seed: Seed of all clips; not negative.
        channels: Number of channels c.
        first: Number of the first clip.
        finer: Frames in which a shape moves as far as usually in one: more frames per second.

    Raises:
        UsageError: if an argument is not a whole number or too small.
    """
    check_sizes(count=count, frames=frames, height=height, width=width)
    check_sizes(seed=seed, channels=channels, finer=finer)
    labels = (first + np.arange(count, dtype=np.int64)) % len(MOTION_LABELS)
    clips = np.empty((count, frames, channels, height, width), np.float32)
    for i, (clip, label) in enumerate(zip(clips, labels, strict=True)):
        rng = np.random.Generator(np.random.PCG64([seed, first + i]))
        down, across = _VELOCITIES[label]
        _draw(clip, rng, (down / finer, across / finer))
    return clips, labels


def check_sizes(**values: int) -> None:
    """Raise `UsageError` if a value is too small for clips of the task, or no whole number."""
    for name, value in values.items():
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < _SMALLEST[name]:
            raise UsageError(
                f"{name} of motion clips",
                got=repr(value),
                expected=f"a whole number of at least {_SMALLEST[name]}",
            )


def _draw(clip: np.ndarray, rng: np.random.Generator, velocity: tuple[float, float]) -> None:
    """Fill one clip `(f, c, h, w)`; `velocity` is in sides per frame: down, then to the right."""
    _, channels, height, width = clip.shape
    level = rng.uniform(0.2, 0.4)
    clip[:] = level + _background(rng, channels, height, width)
    for _ in range(rng.integers(1, 4)):
        # Brighter than the background in every channel: the motion must be visible.
        colour = (level + rng.uniform(0.3, 0.6, channels)).astype(np.float32)
        cover = _moving_shape(rng, clip.shape, velocity)[:, np.newaxis]  # f 1 h w
        clip += cover * (colour[:, np.newaxis, np.newaxis] - clip)
    contrast, brightness = rng.uniform(0.5, 1.0), rng.uniform(-0.2, 0.2)
    clip -= 0.5
    clip *= contrast
    clip += 0.5 + brightness
    clip += rng.standard_normal(clip.shape, np.float32) * rng.uniform(0.0, 0.04)
    np.clip(clip, 0, 1, out=clip)


def _background(rng: np.random.Generator, channels: int, height: int, width: int) -> np.ndarray:
    """Return a smooth periodic field around 0, `(c, h, w)`: a sum of a few long waves."""
    rows, columns = _waves(height), _waves(width)
    weights = rng.standard_normal((channels, rows.shape[1], columns.shape[1])) * 0.015
    return rows @ weights @ columns.T


def _waves(side: int) -> np.ndarray:
    """Return the constant and the waves of 1 to `_WAVES` periods, `(side, 2 * _WAVES + 1)`."""
    turns = 2 * np.pi * np.arange(side)[:, np.newaxis] / side * np.arange(1, _WAVES + 1)
    return np.concatenate((np.ones((side, 1)), np.cos(turns), np.sin(turns)), axis=1)


def _moving_shape(
    rng: np.random.Generator, shape: tuple[int, ...], velocity: tuple[float, float]
) -> np.ndarray:
    """Return the fraction of each pixel that one shape covers, `(f, h, w)` in [0, 1].

    A fraction, not 0 or 1: so a step of less than a pixel is visible.
    """
    frames, _, height, width = shape
    distance = list(_DISTANCES.values())[rng.integers(len(_DISTANCES))]
    radius, angle = rng.uniform(0.12, 0.2) * min(height, width), rng.uniform(0, 2 * math.pi)
    down, across = velocity
    y = _offsets(height, rng.uniform(), down, frames)[:, :, np.newaxis]  # f h 1
    x = _offsets(width, rng.uniform(), across, frames)[:, np.newaxis, :]  # f 1 w
    cos, sin = math.cos(angle), math.sin(angle)
    return np.clip(0.5 - distance(cos * x + sin * y, cos * y - sin * x, radius), 0, 1)


def _offsets(side: int, start: float, step: float, frames: int) -> np.ndarray:
    """Return the signed distance in pixels to the shape's centre along one axis, `(f, side)`.

    The frame wraps around, and the distance is the shorter of the two ways.
    """
    centre = (start + step * np.arange(frames, dtype=np.float32)) * side
    offsets = np.arange(side, dtype=np.float32) - centre[:, np.newaxis]
    return ((offsets + side / 2) % side - side / 2).astype(np.float32)


def _disc(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - radius


def _square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.maximum(abs(x), abs(y)) - 0.9 * radius


def _triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """An equilateral triangle: the largest of the distances to its three lines."""
    return np.maximum(math.sqrt(0.75) * abs(x) + 0.5 * y, -y) - 0.7 * radius


def _cross(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Two bars: the smaller of the distances to them."""
    x, y, bar = abs(x), abs(y), 0.4 * radius
    long = 1.2 * radius
    return np.minimum(np.maximum(x - long, y - bar), np.maximum(x - bar, y - long))


# Each function returns the signed distance in pixels from a point to the edge of a shape. It is
# negative inside. The point is relative to the centre of the shape.
_DISTANCES: Mapping[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}
