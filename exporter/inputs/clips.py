"""The clips an export is proven and timed on: real ones first, then the fixed synthetic set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.errors import VideoError
from exporter.inputs.motion import motion_clips
from exporter.inputs.synthetic import synthetic_inputs
from exporter.inputs.video import Clip, as_input, read_clip
from model.config import ClipConfig, Preprocessing

_CALIBRATION_CLIPS = 24
_SYNTHETIC_REACH = 2.5  # from zero to black and to white, in the model's units: most noise fits


@dataclass(frozen=True)
class Inputs:
    """Named clips, real ones first, then the synthetic set.

    `arrays` are the model's inputs by name: `video` float32 `(n, f, c, h, w)`, or uint8
    `(n, f, h, w, c)` for a model that normalises itself, and `mask` bool `(n, f)` where the model
    takes one.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]
    arrays: dict[str, np.ndarray]

    @property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shape of each input, with the batch left free."""
        return {name: (None, *array.shape[1:]) for name, array in self.arrays.items()}

    def batch(self, size: int, start: int = 0) -> dict[str, np.ndarray]:
        """`size` clips from the one at `start` on, from the first again where there are fewer."""
        places = (start + np.arange(size)) % len(self.names)
        return {name: array[places] for name, array in self.arrays.items()}

    def chosen(self, *names: str) -> Inputs:
        """Only the clips of these names."""
        places = [self.names.index(name) for name in dict.fromkeys(names)]
        return Inputs(
            tuple(self.names[i] for i in places),
            tuple(self.notes[i] for i in places),
            {name: array[places] for name, array in self.arrays.items()},
        )


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
    clips = [_read(path, config, preprocessing, on_clip) for path in videos]
    return _join([*clips, *_synthetic(config, preprocessing)], mask=mask)


def gather_calibration(
    paths: Sequence[Path],
    config: ClipConfig,
    preprocessing: Preprocessing,
    *,
    mask: bool = False,
    on_clip: Callable[[str], None] = lambda name: None,
) -> Inputs:
    """The clips whose activations scale an int8 graph: files, and those in folders.

    Without any, moving shapes as a camera would see them, and the synthetic kinds of input, other
    ones than parity is judged on.

    Raises:
        VideoError: if a clip cannot be read, or a folder has none.
    """
    files = [file for path in paths for file in _files(path)]
    clips = [_read(file, config, preprocessing, on_clip) for file in files]
    if not clips:
        size = (config.frames, config.height, config.width)
        pixels, _ = motion_clips(_CALIBRATION_CLIPS, *size, seed=1, channels=config.channels)
        shapes = as_input(pixels, preprocessing)
        clips = [(f"motion-{i}", "synthetic", clip) for i, clip in enumerate(shapes)]
        clips += _synthetic(config, preprocessing, seed=1)
    return _join(clips, mask=mask)


def _synthetic(
    config: ClipConfig, preprocessing: Preprocessing, seed: int = 0
) -> list[tuple[str, str, np.ndarray]]:
    """Name, note and clip of the fixed set; as pixels, its middle is grey."""
    made = synthetic_inputs(config.frames, config.channels, config.height, config.width, seed)
    if not preprocessing.embedded:
        return [(name, "synthetic", clip) for name, clip in made]
    grey, span = np.float32(0.5), np.float32(2 * _SYNTHETIC_REACH)
    return [
        (name, "synthetic pixels", as_input(grey + clip / span, preprocessing))
        for name, clip in made
    ]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name[0] != ".")
    if not files:
        raise VideoError(f"--calibration: no clips in {path}")
    return files


def read_for(config: ClipConfig, preprocessing: Preprocessing, path: Path) -> Clip:
    """Read one clip as a model takes it.

    Raises:
        VideoError: if it cannot be read.
    """
    return read_clip(
        path,
        frames=config.frames,
        height=config.height,
        width=config.width,
        preprocessing=preprocessing,
        channels=config.channels,
    )


def _read(
    path: Path, config: ClipConfig, preprocessing: Preprocessing, on_clip: Callable[[str], None]
) -> tuple[str, str, np.ndarray]:
    """Name, note and `(f, c, h, w)` of one clip."""
    on_clip(path.name)
    clip = read_for(config, preprocessing, path)
    return path.name, clip.summary, clip.array[0]


def _join(clips: Sequence[tuple[str, str, np.ndarray]], *, mask: bool) -> Inputs:
    names, notes, videos = zip(*clips, strict=True)
    arrays = {"video": np.stack(videos)}
    if mask:
        arrays["mask"] = _frame_masks(*arrays["video"].shape[:2])
    return Inputs(names, notes, arrays)


def _frame_masks(clips: int, frames: int) -> np.ndarray:
    """Bool `(n, f)`, true for the frames to look at; each clip keeps at least one."""
    masks = np.random.Generator(np.random.PCG64(0)).random((clips, frames)) < 0.5
    masks[0::2] = True
    masks[~masks.any(axis=1), 0] = True
    return masks
