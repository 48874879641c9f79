"""Select the frames of a clip that the model sees."""

from __future__ import annotations


def segment_centres(count: int, frames: int) -> tuple[int, ...]:
    """Return the centre frame of each of `frames` segments: `floor((i + 0.5) * count / frames)`."""
    return tuple((2 * i + 1) * count // (2 * frames) for i in range(frames))
