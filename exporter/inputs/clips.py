"""The clips for the proof and the timing of an export: real clips, then the fixed synthetic set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from exporter.errors import VideoError
from exporter.inputs.frames import clips_in
from exporter.inputs.motion import LEAST_FRAMES, LEAST_SIDE, motion_clips
from exporter.inputs.pictures import picture_inputs
from exporter.inputs.synthetic import synthetic_inputs
from exporter.inputs.video import Clip, Source, as_input, read_clip
from model.config import ClipConfig
from model.preprocessing import Preprocessing

_CALIBRATION_CLIPS = 24
# A synthetic value of 0 becomes grey; -2.5 becomes black and +2.5 white. Most noise is in between.
_SYNTHETIC_LIMIT = 2.5  # in the model's units
# The synthetic clips that differ most, first; together they look at every place of a clip.
TELLING = (
    "natural",
    "checkerboard",
    "odd-frames",
    "normal-0",
    "places",
    "unit",
    "black",
    "white",
    "lit-in-turn",
    "constant-per-frame",
)


@dataclass(frozen=True)
class Taken:
    """The frames of a real clip: their numbers in the file, and their times in seconds if known."""

    indices: tuple[int, ...]
    times: tuple[float, ...]


@dataclass(frozen=True)
class Inputs:
    """Named clips: the real clips first, then the synthetic set.

    `arrays` maps the name of each model input to its values. `video` is float32
    `(n, f, c, h, w)`, or uint8 `(n, f, h, w, c)` for a model that contains the normalisation.
    `mask` is bool `(n, f)` and is present only where the model takes a mask. `taken` tells which
    frames of the real clips these are. Inputs that the caller has `given` are not clips: nothing
    can read or make them again.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    taken: tuple[Taken, ...] = ()
    given: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shape of each input; the batch axis is None."""
        return {name: (None, *array.shape[1:]) for name, array in self.arrays.items()}

    def batch(self, size: int, start: int = 0) -> dict[str, np.ndarray]:
        """Return `size` clips from index `start` on; continue with the first after the last."""
        places = range(start, start + size)
        return {name: array.take(places, 0, mode="wrap") for name, array in self.arrays.items()}

    def chosen(self, *names: str) -> Inputs:
        """Return only the clips with these names."""
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
    few: bool = False,
    on_clip: Callable[[str], None] = lambda name: None,
) -> Inputs:
    """Read the clips in the form that the model takes, and add the synthetic set.

    With `mask`, random frames of every second clip are masked. The first clip has no masked frame.
    With `few`, the set has only the clips of `TELLING`, for a model whose runs take long.

    Raises:
        VideoError: if a clip cannot be read.
    """
    clips = [_read(path, config, preprocessing, on_clip) for path in videos]
    real = [(path.name, clip.summary, clip.array[0]) for path, clip in clips]
    made = proof_clips(config, preprocessing, TELLING if few else None)
    inputs = _join([*real, *made], mask=mask)
    return replace(inputs, taken=tuple(Taken(clip.indices, clip.times) for _, clip in clips))


def gather_calibration(
    paths: Sequence[Path],
    config: ClipConfig,
    preprocessing: Preprocessing,
    *,
    mask: bool = False,
    on_clip: Callable[[str], None] = lambda name: None,
) -> Inputs:
    """Read the calibration clips, whose activations set the scales of an int8 graph.

    `paths` are clips and folders with clips, each a file or a folder of frames. Without paths, the
    clips are moving shapes, which resemble camera pictures, and the synthetic kinds of input. They
    have another seed than the clips on which parity is judged, so they are different clips.

    Raises:
        VideoError: if a clip cannot be read, or a folder has no clip.
    """
    found = {path: clips_in(path) for path in paths}
    if empty := [path for path, inside in found.items() if not inside]:
        raise VideoError(f"--calibration: no clips in {empty[0]}")
    files = (file for inside in found.values() for file in inside)
    read = (_read(file, config, preprocessing, on_clip) for file in files)
    clips = [(path.name, clip.summary, clip.array[0]) for path, clip in read]
    if not clips:
        shapes = as_input(_moving_shapes(config), preprocessing)
        clips = [(f"motion-{i}", "synthetic", clip) for i, clip in enumerate(shapes)]
        clips += synthetic_clips(config, preprocessing, seed=1)
    return _join(clips, mask=mask)


def _moving_shapes(config: ClipConfig) -> np.ndarray:
    """Draw pixels `(n, f, c, h, w)` of moving shapes; a clip too small for them is cut out."""
    f, h, w = config.frames, config.height, config.width
    drawn = (max(f, LEAST_FRAMES), max(h, LEAST_SIDE), max(w, LEAST_SIDE))
    pixels, _ = motion_clips(_CALIBRATION_CLIPS, *drawn, seed=1, channels=config.channels)
    return pixels[:, :f, :, :h, :w]


def synthetic_clips(
    config: ClipConfig,
    preprocessing: Preprocessing,
    seed: int = 0,
    names: Collection[str] | None = None,
) -> list[tuple[str, str, np.ndarray]]:
    """Return name, note and values of the fixed clips; as pixels, a value of 0 is grey."""
    sizes = config.frames, config.channels, config.height, config.width
    made = synthetic_inputs(*sizes, seed, names)
    if not preprocessing.embedded:
        return [(name, "synthetic", clip) for name, clip in made]
    grey, span = np.float32(0.5), np.float32(2 * _SYNTHETIC_LIMIT)
    return [
        (name, "synthetic pixels", as_input(grey + clip / span, preprocessing))
        for name, clip in made
    ]


def proof_clips(
    config: ClipConfig, preprocessing: Preprocessing, names: Collection[str] | None = None
) -> list[tuple[str, str, np.ndarray]]:
    """Return name, note and values of the fixed clips of a proof: all, or those named."""
    made = picture_inputs(config.frames, config.channels, config.height, config.width, names)
    pictures = [
        (name, "synthetic picture", as_input(clip, preprocessing))
        if pixels or preprocessing.embedded
        else (name, "synthetic", clip)
        for name, pixels, clip in made
    ]
    return [*synthetic_clips(config, preprocessing, names=names), *pictures]


def read_for(config: ClipConfig, preprocessing: Preprocessing, source: Source) -> Clip:
    """Read all views of one clip in the form that the model takes.

    Raises:
        VideoError: if the clip cannot be read.
    """
    return read_clip(
        source,
        frames=config.frames,
        height=config.height,
        width=config.width,
        preprocessing=preprocessing,
        channels=config.channels,
    )


def _read(
    path: Path, config: ClipConfig, preprocessing: Preprocessing, on_clip: Callable[[str], None]
) -> tuple[Path, Clip]:
    """Read one view of a clip."""
    on_clip(path.name)
    return path, read_for(config, preprocessing.one_view, path)


def _join(clips: Sequence[tuple[str, str, np.ndarray]], *, mask: bool) -> Inputs:
    names, notes, videos = zip(*clips, strict=True)
    arrays = {"video": np.stack(videos)}
    if mask:
        arrays["mask"] = _frame_masks(*arrays["video"].shape[:2])
    return Inputs(names, notes, arrays)


def _frame_masks(clips: int, frames: int) -> np.ndarray:
    """Return bool `(n, f)`: true for a frame that the model uses, at least one in each clip."""
    masks = np.random.Generator(np.random.PCG64(0)).random((clips, frames)) < 0.5
    masks[0::2] = True
    masks[~masks.any(axis=1), 0] = True
    return masks
