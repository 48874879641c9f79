"""The clips an export is proven and timed on: real ones first, then the fixed synthetic set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.inputs import synthetic_inputs
from exporter.video import read_clip
from model.config import ClipConfig, Preprocessing


@dataclass(frozen=True)
class Inputs:
    """Named clips, real ones first, then the synthetic set.

    `arrays` are the model's inputs by name: `video` `(n, f, c, h, w)`, and `mask` bool `(n, f)`
    where the model takes one.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]
    arrays: dict[str, np.ndarray]

    @property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shape of each input, with the batch left free."""
        return {name: (None, *array.shape[1:]) for name, array in self.arrays.items()}

    def batch(self, size: int) -> dict[str, np.ndarray]:
        """The first `size` clips, from the start again where there are fewer."""
        places = np.arange(size) % len(self.names)
        return {name: array[places] for name, array in self.arrays.items()}


def gather_inputs(
    videos: Sequence[Path],
    config: ClipConfig,
    preprocessing: Preprocessing,
    *,
    mask: bool = False,
    on_clip: Callable[[str], None] = lambda name: None,
) -> Inputs:
    """Read the clips as the model takes them, and add the synthetic set.

    With `mask`, every other clip comes with some of its frames masked, the first one with none.

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
    arrays = {"video": np.stack(clips)}
    if mask:
        arrays["mask"] = _frame_masks(len(clips), config.frames)
    return Inputs(tuple(names), tuple(notes), arrays)


def _frame_masks(clips: int, frames: int) -> np.ndarray:
    """Bool `(n, f)`, true for the frames to look at; each clip keeps at least one."""
    masks = np.random.Generator(np.random.PCG64(0)).random((clips, frames)) < 0.5
    masks[0::2] = True
    masks[~masks.any(axis=1), 0] = True
    return masks
