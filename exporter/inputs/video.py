"""Read a clip file as the model's input: float32 `(b=1, f, c, h, w)`, or pixels (numpy).

Axes: b batch, f frames, c channels, h height, w width. H and W are the size of the source frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.errors import VideoError
from exporter.inputs.colour import hdr, pixel_aspect, upright_rgb
from exporter.inputs.container import REENCODE, check_file, open_video
from exporter.inputs.container import frames as decode_frames
from exporter.inputs.resize import fit
from exporter.inputs.sampling import segment_centres
from exporter.inputs.survey import Survey, survey

# `model` may import torch, which this file does not need.
if TYPE_CHECKING:
    from model.config import Preprocessing

BT601_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip in the form that the model takes, and how it was read.

    Attributes:
        array: `(1, f, c, h, w)` float32, normalised; or `(1, f, h, w, c)` uint8 for a model that
            contains the normalisation.
        source_frames: Number of frames that decode.
        source_size: H and W of the upright frames, in pixels.
        indices: Indices of the f frames taken.
        note: What a reader of the results should know (damage, repeated frames), or "".
    """

    array: np.ndarray
    source_frames: int
    source_size: tuple[int, int]
    indices: tuple[int, ...]
    note: str = ""

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


@dataclass
class _Decoded:
    """The result of one pass over the stream; `images` maps a frame's index to `(3, h, w)`."""

    count: int = 0
    images: dict[int, np.ndarray] = field(default_factory=dict)
    source_size: tuple[int, int] = (0, 0)
    aspect: Fraction = Fraction(1)
    hdr: str = ""
    damaged: int = 0
    faults: list[str] = field(default_factory=list)


def read_clip(
    path: Path,
    *,
    frames: int,
    height: int,
    width: int,
    preprocessing: Preprocessing,
    channels: int = 3,
) -> Clip:
    """Read a clip as `(1, f, c, h, w)` float32: sampled, upright, resized, cropped, normalised.

    For a model that contains the normalisation, the result is `(1, f, h, w, c)` uint8: the same
    without normalisation, rounded to pixels. The frames are the centres of `frames` equal
    segments. A clip with fewer frames repeats some, and `Clip.note` says so. `height` and `width`
    are in pixels. 3 channels are RGB, 1 channel is luma (BT.601). Memory grows with `frames`, not
    with the length of the clip.

    Raises:
        VideoError: if the file is not a video, no frame decodes, or the channels do not fit.
    """
    _check_channels(channels, preprocessing)
    check_file(path)
    found = survey(path)
    size = (height, width, preprocessing.short_side)
    decoded = _decode_sampled(path, found.frames, frames, size)
    indices = segment_centres(decoded.count, frames)
    video = np.stack([decoded.images[index] for index in indices])  # (f, 3, h, w)
    if channels == 1:
        video = np.einsum("c,fchw->fhw", BT601_LUMA, video)[:, np.newaxis]
    array = as_input(video / np.float32(255), preprocessing)[np.newaxis]
    return Clip(
        array,
        decoded.count,
        decoded.source_size,
        indices,
        _note(decoded, found, frames, preprocessing),
    )


def _decode_sampled(
    path: Path, guess: int, frames: int, size: tuple[int, int, int | None]
) -> _Decoded:
    """Decode until the kept frames are the segment centres of the frame count found.

    The first pass is usually enough, because the number of packets (`guess`) is usually the frame
    count.
    """
    threads = "AUTO"
    for _ in range(3):
        decoded = _decode(path, set(segment_centres(guess, frames)), size, threads)
        if decoded.count == 0:
            reason = next(iter(decoded.faults), None)
            raise VideoError(f"{path} has no frame that decodes", got=reason, remedy=REENCODE)
        # With several threads, FFmpeg repairs a damaged frame differently from run to run.
        repeatable = threads == "NONE" or not (decoded.faults or decoded.damaged)
        if repeatable and decoded.count == guess:
            return decoded
        guess, threads = decoded.count, threads if repeatable else "NONE"
    raise VideoError(f"{path} decodes differently each time", remedy=REENCODE)


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


def _decode(
    path: Path, wanted: set[int], size: tuple[int, int, int | None], threads: str
) -> _Decoded:
    """Decode the whole stream; keep only the `wanted` frames, resized to `size` by `fit`."""
    decoded = _Decoded()
    with open_video(path) as stream:
        stream.thread_type = threads
        for frame in decode_frames(stream, decoded.faults):
            if decoded.count in wanted:
                image, turned = upright_rgb(frame)
                decoded.aspect = pixel_aspect(stream.sample_aspect_ratio, turned=turned)
                decoded.source_size = image.shape[0], image.shape[1]
                # A published resize by the short side takes pixels as square, whatever they are.
                shown = decoded.aspect if size[2] is None else Fraction(1)
                decoded.images[decoded.count] = fit(image, *size, aspect=shown)
                decoded.hdr = decoded.hdr or hdr(frame)
            decoded.count += 1
            decoded.damaged += frame.is_corrupt
    return decoded


def _check_channels(channels: int, preprocessing: Preprocessing) -> None:
    if channels not in (1, 3):
        raise VideoError("a clip gives 1 or 3 channels", got=f"a model of {channels}")
    if (got := len(preprocessing.mean)) != channels:
        raise VideoError("channels of the preprocessing mean and std", got=got, expected=channels)


def _note(decoded: _Decoded, found: Survey, frames: int, preprocessing: Preprocessing) -> str:
    """Say what a reader of the results should know about the reading of the clip, or ""."""
    count, faults, aspect = decoded.count, decoded.faults, decoded.aspect
    published = preprocessing.short_side is not None
    stretched = "but the model's resize takes them as square" if published else "frames stretched"
    notes = [
        count < frames and f"shorter than asked ({count} of {frames} frames), so frames repeat",
        faults
        and f"damaged ({len(faults)} errors, first: {faults[0]}), used the frames that decode",
        decoded.damaged and f"damaged frames: {decoded.damaged}, used as FFmpeg repairs them",
        found.missing and f"{found.missing}: perhaps cut short, used the frames present",
        found.uneven
        and f"variable frame rate ({found.uneven} between frames): sampled by frame, not by time",
        aspect != 1
        and f"pixels have the shape {aspect.numerator}:{aspect.denominator}, {stretched}",
        decoded.hdr and f"HDR ({decoded.hdr}): values are taken as stored, without tone mapping",
    ]
    return "; ".join(note for note in notes if note)
