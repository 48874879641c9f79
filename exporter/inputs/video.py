"""Clip file -> `(b=1, f, c, h, w)` float32, or pixels, the model's input (numpy and PyAV only).

Axes: b batch, f frames, c channels, h height, w width; H, W are the clip's own size.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from exporter.errors import VideoError
from exporter.inputs.resize import fit
from exporter.inputs.sampling import segment_centres

if TYPE_CHECKING:  # `av` only when a clip is read; `model` may bring torch, which this file avoids
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from model.config import Preprocessing

BT601_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# swscale's BILINEAR | ACCURATE_RND | BITEXACT: without the last two the colours of a pixel depend
# on the machine's vector instructions. Numbers, since older PyAV has no names for these flags.
CONVERSION = 0x2 | 0x40000 | 0x80000
FIND = "check the path and its permissions"
REMEDY = "check that the file is complete, or re-encode it, for example to H.264 in .mp4"


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip as the model takes it, and what was done to get there.

    `array` is `(1, f, c, h, w)` float32, normalised, or `(1, f, h, w, c)` uint8 for a model that
    does that itself; `source_frames` the frames that decode; `source_size` H and W of the upright
    frames (pixels); `indices` the f frames taken; `note` what a reader of the results should know
    (damage, repeated frames), or "".
    """

    array: np.ndarray
    source_frames: int
    source_size: tuple[int, int]
    indices: tuple[int, ...]
    note: str = ""

    @property
    def summary(self) -> str:
        """One line for the report: frames taken, sizes, and the note."""
        pixels = self.array.dtype == np.uint8
        height, width = self.array.shape[2:4] if pixels else self.array.shape[3:]
        line = (
            f"frames {', '.join(map(str, self.indices))} of {self.source_frames}, "
            f"{self.source_size[0]}x{self.source_size[1]} resized and cropped to {height}x{width}"
        )
        return f"{line}; {self.note}" if self.note else line


@dataclass
class _Decoded:
    """What one pass over the stream gave; `images` maps a frame's index to `(3, h, w)`."""

    count: int = 0
    images: dict[int, np.ndarray] = field(default_factory=dict)
    source_size: tuple[int, int] = (0, 0)
    damaged: int = 0
    faults: list[str] = field(default_factory=list)
    missing: str = ""


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

    Where the model normalises itself, as `(1, f, h, w, c)` uint8: cropped, and rounded to pixels.
    The centre frames of `frames` equal segments are taken; a shorter clip repeats some, which
    `Clip.note` says. `height` and `width` are in pixels; 3 channels are RGB, 1 is luma (BT.601).
    Memory is bounded by `frames`, not by the clip's length.

    Raises:
        VideoError: if the file is no video, no frame decodes, or the channels do not fit.
    """
    _check_channels(channels, preprocessing)
    _check_file(path)
    decoded = _settle(path, frames, (height, width, preprocessing.short_side))
    indices = segment_centres(decoded.count, frames)
    video = np.stack([decoded.images[index] for index in indices])  # (f, 3, h, w)
    if channels == 1:
        video = np.einsum("c,fchw->fhw", BT601_LUMA, video)[:, np.newaxis]
    array = as_input(video / np.float32(255), preprocessing)[np.newaxis]
    return Clip(array, decoded.count, decoded.source_size, indices, _note(decoded, frames))


def _settle(path: Path, frames: int, size: tuple[int, int, int | None]) -> _Decoded:
    """Decode until the frames kept are the right ones for the count found, mostly at once."""
    guess, threads = _count_packets(path), "AUTO"  # packets are a cheap guess at the frames
    for _ in range(3):
        decoded = _decode(path, set(segment_centres(guess, frames)), size, threads)
        if decoded.count == 0:
            reason = next(iter(decoded.faults), None)
            raise VideoError(f"{path} has no frame that decodes", got=reason, remedy=REMEDY)
        # How FFmpeg mends a damaged frame depends on how its threads race.
        settled = threads == "NONE" or not (decoded.faults or decoded.damaged)
        if settled and decoded.count == guess:
            return decoded
        guess, threads = decoded.count, threads if settled else "NONE"
    raise VideoError(f"{path} decodes differently each time", remedy=REMEDY)


def as_input(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Pixels in [0, 1], `(..., c, h, w)` float32, as the model takes them.

    Normalised; or rounded to uint8 `(..., h, w, c)` for a model that normalises itself.
    """
    if not preprocessing.embedded:
        return normalise(pixels, preprocessing)
    whole = np.rint(255 * pixels).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(whole, -3, -1))


def normalise(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """`(pixel - mean) / std` by channel for pixels in [0, 1], `(..., c, h, w)` float32."""
    mean = np.asarray(preprocessing.mean, np.float32)[:, np.newaxis, np.newaxis]
    std = np.asarray(preprocessing.std, np.float32)[:, np.newaxis, np.newaxis]
    return (pixels - mean) / std


def _upright_rgb(frame: VideoFrame) -> np.ndarray:
    """`(H, W, 3)` uint8, turned and mirrored as the clip's display matrix says (phones)."""
    image = frame.reformat(format="rgb24", interpolation=CONVERSION).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # Rows (a, b, u), (c, d, v), …: x' = a x + c y, y' = b x + d y. An array can be turned in eight
    # ways; an angle between them goes to the nearest.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _count_packets(path: Path) -> int:
    """Count the packets of the video stream, which reads the file but decodes nothing."""
    with _open(path) as stream:
        return sum(bool(p and p.size and not p.is_discard) for p in _packets(stream, faults=[]))


def _decode(
    path: Path, wanted: set[int], size: tuple[int, int, int | None], threads: str
) -> _Decoded:
    """Decode the whole stream; `fit` to `size` and keep only the frames that are `wanted`."""
    decoded, end = _Decoded(), 0.0
    with _open(path) as stream:
        stream.thread_type = threads
        for frame in _frames(stream, decoded.faults):
            if decoded.count in wanted:
                image = _upright_rgb(frame)
                decoded.source_size = image.shape[0], image.shape[1]
                decoded.images[decoded.count] = fit(image, *size)
            decoded.count += 1
            decoded.damaged += frame.is_corrupt
            end = max(end, frame.time or 0.0)
        decoded.missing = _missing(stream, decoded.count, end)
    return decoded


def _missing(stream: VideoStream, count: int, end: float) -> str:
    """Say what the header promises beyond `count` frames up to `end` seconds, or ""."""
    if stream.frames:
        same = stream.frames == count
        return "" if same else f"its header says {stream.frames} frames, {count} decode"
    seconds = (cast("InputContainer", stream.container).duration or 0) / 1e6  # microseconds
    end -= float((stream.start_time or 0) * (stream.time_base or 0))
    whole = end >= 0.9 * seconds - 1  # sound may go on a little longer than the frames
    return "" if whole else f"its header says {seconds:.1f} s, its frames end at {end:.1f} s"


def _frames(stream: VideoStream, faults: list[str]) -> Iterator[VideoFrame]:
    """Yield all frames that decode; what does not is told in `faults` and passed over."""
    for packet in _packets(stream, faults):
        try:
            yield from stream.decode(packet)
        except _av_errors() as error:
            faults.append(_reason(error))


def _packets(stream: VideoStream, faults: list[str]) -> Iterator[Packet[VideoStream] | None]:
    """Yield the stream's packets, and last an empty one or None, which flush the decoder."""
    try:
        yield from cast("InputContainer", stream.container).demux(stream)
    except _av_errors() as error:
        faults.append(_reason(error))
        yield None


@contextmanager
def _open(path: Path) -> Iterator[VideoStream]:
    """Open the clip at its best video stream; `file:` keeps names and playlists off the network."""
    import av
    from av.logging import PANIC, get_level, set_level

    level = get_level()
    try:
        try:
            set_level(PANIC)  # prints nothing, but lets errors carry FFmpeg's words
            container = av.open(f"file:{path}")
        finally:
            set_level(level)  # before decoding: logging from a decoder's threads wants the GIL
        with container:
            yield _video_stream(path, container)
    except _av_errors() as error:  # also where no way leads from a frame's pixel format to RGB
        raise VideoError(f"{path} is not a video", got=_reason(error), remedy=REMEDY) from error


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    from av.stream import Disposition
    from av.video.stream import VideoStream

    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = sorted({other.type for other in container.streams if other is not stream})
        got = f"only {', '.join(kinds) or 'an empty container'}"
        raise VideoError(f"{path} has no video stream", got=got, remedy="give a video file")
    if container.format.name == "tty":  # FFmpeg plays any .txt as a terminal's screen
        raise VideoError(f"{path} is not a video", got="text", remedy="give a video file")
    if stream.codec_context is None:
        raise VideoError(f"{path}: this FFmpeg cannot decode its codec", remedy=REMEDY)
    return stream


def _av_errors() -> tuple[type[Exception], ...]:
    from av.error import FFmpegError

    return FFmpegError, OSError  # PyAV raises some errors of the system as Python's own


def _reason(error: Exception) -> str:
    """FFmpeg's own words for what went wrong, with its last log message where there is one."""
    text = getattr(error, "strerror", None) or type(error).__name__
    log = getattr(error, "log", None)  # (level, component, message)
    return f"{text} ({log[2].strip()})" if log else text


def _check_channels(channels: int, preprocessing: Preprocessing) -> None:
    if channels not in (1, 3):
        raise VideoError("a clip gives 1 or 3 channels", got=f"a model of {channels}")
    if (got := len(preprocessing.mean)) != channels:
        raise VideoError("channels of the preprocessing mean and std", got=got, expected=channels)


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
        if regular := stat.S_ISREG(status.st_mode):  # a pipe would block, and reads only once
            path.open("rb").close()
    except OSError as error:
        raise VideoError(f"{path} cannot be read", got=error.strerror, remedy=FIND) from error
    if not regular or status.st_size == 0:
        got = "an empty file" if regular else "a directory" if path.is_dir() else "a pipe or device"
        raise VideoError(f"{path} cannot be read", got=got, expected="a video file")


def _note(decoded: _Decoded, frames: int) -> str:
    """What a reader of the results should know about how the clip was read, or ""."""
    count, faults = decoded.count, decoded.faults
    notes = [
        count < frames and f"shorter than asked ({count} of {frames} frames), so frames repeat",
        faults and f"damaged ({len(faults)} errors, first: {faults[0]}), what decodes was used",
        decoded.damaged and f"damaged frames: {decoded.damaged}, used as FFmpeg mends them",
        decoded.missing and f"{decoded.missing}: perhaps cut short, what is there was used",
    ]
    return "; ".join(note for note in notes if note)
