"""Read a clip as the model's input: float32 `(v, f, c, h, w)`, or pixels (numpy).

Axes: v views, f frames, c channels, h height, w width. H and W are the size of the source frames.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np

from exporter.errors import UsageError, VideoError
from exporter.inputs.clip_list import one_or_more
from exporter.inputs.container import check_file
from exporter.inputs.decode import Decoded, decode_frames
from exporter.inputs.frames import check_pixels, find_images, gaps, take_images, what_is_in
from exporter.inputs.resize import Frame
from exporter.inputs.sampling import clip_indices
from exporter.inputs.survey import Survey, survey
from model.config import ClipConfig, ConfigError
from model.preprocessing import Preprocessing

BT601_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
Source = Path | Sequence[Path] | np.ndarray  # a file or folder, images, or pixels (N, H, W, 3)
_OTHER_SPACING = 1.5  # frames that many times nearer or further than expected are warned of


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip in the form that the model takes, and how it was read.

    Attributes:
        array: `(v, f, c, h, w)` float32, normalised; or `(v, f, h, w, c)` uint8 for a model that
            contains the normalisation. All crops of the first clip come first.
        source_frames: Number of frames that decode.
        source_size: H and W of the upright frames, in pixels.
        indices: Indices of the frames taken: f of the first clip, then f of the next.
        note: What a reader of the results should know (damage, repeated frames), or "".
        times: Seconds from the start of the source for each index; empty where it has no times.
    """

    array: np.ndarray
    source_frames: int
    source_size: tuple[int, int]
    indices: tuple[int, ...]
    note: str = ""
    times: tuple[float, ...] = ()

    @property
    def summary(self) -> str:
        """One line for the report: the frames taken, the sizes, and the note."""
        pixels = self.array.dtype == np.uint8
        height, width = self.array.shape[2:4] if pixels else self.array.shape[3:]
        line = (
            f"frames {', '.join(map(str, self.indices))} of {self.source_frames}, "
            f"{self.source_size[0]}x{self.source_size[1]} resized and cropped to {height}x{width}"
        )
        return f"{line}; {self.note}" if self.note else line


def read_clip(
    source: Source | str,
    *,
    frames: int,
    height: int,
    width: int,
    preprocessing: Preprocessing,
    channels: int = 3,
) -> Clip:
    """Read all views of a clip: sampled, upright, resized, cropped, normalised.

    For a model that contains the normalisation, the result is pixels: the same without
    normalisation, rounded. Where nothing tells the sampling of the model, the frames are the
    centres of `frames` equal segments. A clip with fewer frames repeats some, and `Clip.note` says
    so. `height` and `width` are in pixels. 3 channels are colours, 1 channel is luma (BT.601).
    Memory grows with the frames taken, not with the length of the clip.

    Raises:
        UsageError: if a size is not whole or not in its limits.
        VideoError: if the source is not a clip, no frame decodes, or the channels do not fit.
    """
    _check_sizes(frames, channels, height, width, preprocessing)
    check_channels(channels, preprocessing)
    to, how = Frame.of(preprocessing, height, width), preprocessing
    source = Path(source) if isinstance(source, str) else source
    images, found = _open(source)

    def choose(count: int) -> tuple[int, ...]:
        each = clip_indices(how.sampled, count, frames, how.views.clips, found.fps)
        return tuple(chain.from_iterable(each))

    if images is None:
        assert isinstance(source, Path)
        taken = decode_frames(source, found, choose, to)
    else:
        taken = take_images(images, choose, to)
        taken.times = _times_of_images(images, how)
    return make_clip(taken, found, choose(taken.count), (frames, channels), how)


def make_clip(
    taken: Decoded,
    found: Survey,
    indices: tuple[int, ...],
    size: tuple[int, int],
    preprocessing: Preprocessing,
) -> Clip:
    """Make a clip of the frames that were taken; `size` is its number of frames and channels."""
    (frames, channels), how = size, preprocessing
    times = tuple(taken.times[index] for index in indices) if taken.times else ()
    notes = [*_notes(taken, found, frames, how), *_notes_on_time(indices[:frames], times, how)]
    note = "; ".join(str(each) for each in notes if each)
    array = _assemble(taken, indices, frames, channels, how)
    return Clip(array, taken.count, taken.source_size, indices, note, times)


def _open(source: Source) -> tuple[Sequence[Path] | np.ndarray | None, Survey]:
    """Return the images of a source, if it is no video file, and what is known of it."""
    images: Sequence[Path] | np.ndarray
    if isinstance(source, np.ndarray):
        check_pixels(source)
        images = source
    elif not isinstance(source, Path):
        images = tuple(map(Path, one_or_more(source)))
    elif source.is_dir():
        images = find_images(source)
    else:
        check_file(source)
        return None, survey(source)
    if not len(images):
        raise VideoError(
            f"{source} cannot be read" if isinstance(source, Path) else "a clip cannot be read",
            got=what_is_in(source) if isinstance(source, Path) else "no image",
            expected="a video file, or a folder with nothing but the frames as images",
        )
    return images, Survey(len(images), gaps(images), "")


def _times_of_images(images: Sequence[Path] | np.ndarray, how: Preprocessing) -> dict[int, float]:
    fps = how.sampled.fps
    return {index: index / fps for index in range(len(images))} if fps else {}


def _assemble(
    taken: Decoded, indices: tuple[int, ...], frames: int, channels: int, how: Preprocessing
) -> np.ndarray:
    """Arrange the crops of all frames as views, and convert them to the model's input."""
    crops = np.stack([taken.images[index] for index in indices])  # (n f, k, 3, h, w)
    views = crops.reshape(-1, frames, *crops.shape[1:]).swapaxes(1, 2)  # (n, k, f, 3, h, w)
    video = views.reshape(-1, frames, *crops.shape[2:])  # (v, f, 3, h, w)
    if channels == 1:
        video = np.einsum("c,vfchw->vfhw", BT601_LUMA, video)[:, :, np.newaxis]
    elif how.channel_order == "bgr":
        video = video[:, :, ::-1]
    return np.ascontiguousarray(as_input(video / np.float32(255), how))


def as_input(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Convert pixels in [0, 1], `(..., c, h, w)` float32, to the form that the model takes.

    The result is normalised. For a model that contains the normalisation, the result is rounded to
    uint8 `(..., h, w, c)` instead.
    """
    if not preprocessing.embedded:
        return normalise(pixels, preprocessing)
    whole = np.rint(255 * pixels).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(whole, -3, -1))


def normalise(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Return `(pixel - mean) / std` per channel for pixels in [0, 1], `(..., c, h, w)` float32."""
    mean = np.asarray(preprocessing.mean, np.float32)[:, np.newaxis, np.newaxis]
    std = np.asarray(preprocessing.std, np.float32)[:, np.newaxis, np.newaxis]
    return (pixels - mean) / std


def _check_sizes(
    frames: int, channels: int, height: int, width: int, preprocessing: Preprocessing
) -> None:
    """Raise `UsageError` unless some model takes clips of these sizes."""
    if not isinstance(preprocessing, Preprocessing):
        raise UsageError("preprocessing", got=repr(preprocessing), expected="a Preprocessing")
    try:
        ClipConfig(frames, channels, height, width, 1, patch_size=1).check_sizes()
    except ConfigError as error:
        raise UsageError(str(error)) from error


def check_channels(channels: int, preprocessing: Preprocessing) -> None:
    """Raise `VideoError` unless a clip can have these channels, and the preprocessing has them."""
    if channels not in (1, 3):
        raise VideoError("a clip gives 1 or 3 channels", got=f"a model of {channels}")
    if (got := len(preprocessing.mean)) != channels:
        raise VideoError("channels of the preprocessing mean and std", got=got, expected=channels)


def _notes(
    taken: Decoded, found: Survey, frames: int, preprocessing: Preprocessing
) -> list[str | bool | int | list[str]]:
    """Say what a reader of the results should know about the reading of the clip."""
    count, faults, aspect = taken.count, taken.faults, taken.aspect
    published = preprocessing.short_side is not None
    stretched = "but the model's resize takes them as square" if published else "frames stretched"
    return [
        count < frames and f"shorter than asked ({count} of {frames} frames), so frames repeat",
        faults
        and f"damaged ({len(faults)} errors, first: {faults[0]}), used the frames that decode",
        taken.damaged and f"damaged frames: {taken.damaged}, used as FFmpeg repairs them",
        found.missing and f"{found.missing}: perhaps cut short, used the frames present",
        found.uneven
        and f"variable frame rate ({found.uneven} between frames): sampled by frame, not by time",
        aspect != Fraction(1)
        and f"pixels have the shape {aspect.numerator}:{aspect.denominator}, {stretched}",
        len(taken.sizes) > 1
        and f"frames of different sizes ({_listed(taken.sizes)}), each is resized",
        taken.hdr and f"HDR ({taken.hdr}): values are taken as stored, without tone mapping",
    ]


def _listed(sizes: Collection[tuple[int, int]]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sorted(sizes))


def _notes_on_time(
    indices: tuple[int, ...], times: tuple[float, ...], how: Preprocessing
) -> list[str | bool]:
    """Say where the time between the frames of the first clip is not the one that is expected."""
    frames, times = len(indices), times[: len(indices)]
    distinct, dense = len(set(indices)), how.sampled.kind == "dense"
    expected, notes = how.training_spacing(frames), []
    if expected and times and frames > 1:
        spacing = (max(times) - min(times)) / (frames - 1)
        if not expected / _OTHER_SPACING <= spacing <= expected * _OTHER_SPACING:
            source = "in training they were" if how.spacing else f"the sampling {how.sampled} says"
            notes.append(
                f"warning: frames are {spacing:.3g} s apart on average, {source} {expected:.3g} s"
            )
    if dense and distinct < frames:
        notes.append(
            f"the sampling asks for more frames than there are: {distinct} of {frames} differ"
        )
    return notes
