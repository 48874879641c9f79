"""The clips an export is proven and timed on: real ones first, then the fixed synthetic set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.inputs import synthetic_inputs
from exporter.video import read_clip
from model.config import FastTimeSformerConfig, Preprocessing


@dataclass(frozen=True)
class Inputs:
    """Named clips `(n, f, c, h, w)`: real ones first, then the synthetic set."""

    names: tuple[str, ...]
    notes: tuple[str, ...]
    clips: np.ndarray

    def batch(self, size: int) -> np.ndarray:
        """The first `size` clips, from the start again where there are fewer."""
        return np.ascontiguousarray(self.clips[np.arange(size) % len(self.clips)])


def gather_inputs(
    videos: Sequence[Path],
    config: FastTimeSformerConfig,
    preprocessing: Preprocessing,
    on_clip: Callable[[str], None] = lambda name: None,
) -> Inputs:
    """Read the clips as the model takes them, and add the synthetic set.

    Raises:
        VideoError: if a clip cannot be read.
    """
    names, notes, clips = [], [], []
    for path in videos:
        on_clip(path.name)
        clip = read_clip(
            path,
            frames=config.frames,
            height=config.height,
            width=config.width,
            preprocessing=preprocessing,
            channels=config.channels,
        )
        names.append(path.name)
        notes.append(clip.summary)
        clips.append(clip.array[0])
    for name, clip in synthetic_inputs(config.frames, config.channels, config.height, config.width):
        names.append(name)
        notes.append("synthetic")
        clips.append(clip)
    return Inputs(tuple(names), tuple(notes), np.stack(clips))
