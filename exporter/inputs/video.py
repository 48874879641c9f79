"""Read a clip file as the model's input: float32 `(b=1, f, c, h, w)`, or pixels (numpy, PyAV).

Axes: b batch, f frames, c channels, h height, w width. H and W are the size of the source frames.
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

# Import `av` only when a clip is read. `model` may import torch, which this file does not need.
if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from model.config import Preprocessing

BT601_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# swscale's BILINEAR | ACCURATE_RND | BITEXACT. Without the last two flags the colours of a pixel
# depend on the vector instructions of the machine. Older PyAV has no names for these flags, so they
# are numbers.
CONVERSION = 0x2 | 0x40000 | 0x80000
CHECK_PATH = "check the path and its permissions"
REENCODE = "check that the file is complete, or re-encode it, for example to H.264 in .mp4"


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

    For a model that contains the normalisation, the result is `(1, f, h, w, c)` uint8: the same
    without normalisation, rounded to pixels. The frames are the centres of `frames` equal
    segments. A clip with fewer frames repeats some, and `Clip.note` says so. `height` and `width`
    are in pixels. 3 channels are RGB, 1 channel is luma (BT.601). Memory grows with `frames`, not
    with the length of the clip.

    Raises:
        VideoError: if the file is not a video, no frame decodes, or the channels do not fit.
    """
    _check_channels(channels, preprocessing)
    _check_file(path)
    decoded = _decode_sampled(path, frames, (height, width, preprocessing.short_side))
    indices = segment_centres(decoded.count, frames)
    video = np.stack([decoded.images[index] for index in indices])  # (f, 3, h, w)
    if channels == 1:
        video = np.einsum("c,fchw->fhw", BT601_LUMA, video)[:, np.newaxis]
    array = as_input(video / np.float32(255), preprocessing)[np.newaxis]
    return Clip(array, decoded.count, decoded.source_size, indices, _note(decoded, frames))


def _decode_sampled(path: Path, frames: int, size: tuple[int, int, int | None]) -> _Decoded:
    """Decode until the kept frames are the segment centres of the frame count found.

    The first pass is usually enough, because the number of packets is usually the frame count.
    """
    guess, threads = _count_packets(path), "AUTO"  # counting packets costs no decoding
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


def _upright_rgb(frame: VideoFrame) -> np.ndarray:
    """Return `(H, W, 3)` uint8, rotated and mirrored by the clip's display matrix (phones)."""
    image = frame.reformat(format="rgb24", interpolation=CONVERSION).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # The rows are (a, b, u), (c, d, v), …: x' = a x + c y, y' = b x + d y. An array has eight
    # orientations; take the one nearest to the angle.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _count_packets(path: Path) -> int:
    """Count the packets of the video stream. This reads the file and decodes nothing."""
    with _open(path) as stream:
        return sum(bool(p and p.size and not p.is_discard) for p in _packets(stream, faults=[]))


def _decode(
    path: Path, wanted: set[int], size: tuple[int, int, int | None], threads: str
) -> _Decoded:
    """Decode the whole stream; keep only the `wanted` frames, resized to `size` by `fit`."""
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
    """Say what is missing compared with the header, or "".

    The stream has `count` frames and ends at `end` seconds.
    """
    if stream.frames:
        same = stream.frames == count
        return "" if same else f"its header says {stream.frames} frames, {count} decode"
    seconds = (cast("InputContainer", stream.container).duration or 0) / 1e6  # microseconds
    end -= float((stream.start_time or 0) * (stream.time_base or 0))
    whole = end >= 0.9 * seconds - 1  # the sound may last a little longer than the frames
    return "" if whole else f"its header says {seconds:.1f} s, its frames end at {end:.1f} s"


def _frames(stream: VideoStream, faults: list[str]) -> Iterator[VideoFrame]:
    """Yield all frames that decode; skip the others and note the error in `faults`."""
    for packet in _packets(stream, faults):
        try:
            yield from stream.decode(packet)
        except _av_errors() as error:
            faults.append(_reason(error))


def _packets(stream: VideoStream, faults: list[str]) -> Iterator[Packet[VideoStream] | None]:
    """Yield the stream's packets; the last is empty or None, which flushes the decoder."""
    try:
        yield from cast("InputContainer", stream.container).demux(stream)
    except _av_errors() as error:
        faults.append(_reason(error))
        yield None


@contextmanager
def _open(path: Path) -> Iterator[VideoStream]:
    """Open the best video stream; with `file:`, no name or playlist can reach the network."""
    import av
    from av.logging import PANIC, get_level, set_level

    level = get_level()
    try:
        try:
            set_level(PANIC)  # print nothing, but keep FFmpeg's message in the errors
            container = av.open(f"file:{path}")
        finally:
            set_level(level)  # before decoding: logging from decoder threads needs the GIL
        with container:
            yield _video_stream(path, container)
    except _av_errors() as error:  # also where FFmpeg cannot convert the pixel format to RGB
        raise VideoError(f"{path} is not a video", got=_reason(error), remedy=REENCODE) from error


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    from av.stream import Disposition
    from av.video.stream import VideoStream

    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = sorted({other.type for other in container.streams if other is not stream})
        got = f"only {', '.join(kinds) or 'an empty container'}"
        raise VideoError(f"{path} has no video stream", got=got, remedy="give a video file")
    if container.format.name == "tty":  # FFmpeg reads any .txt as the screen of a terminal
        raise VideoError(f"{path} is not a video", got="text", remedy="give a video file")
    if stream.codec_context is None:
        raise VideoError(f"{path}: this FFmpeg cannot decode its codec", remedy=REENCODE)
    return stream


def _av_errors() -> tuple[type[Exception], ...]:
    from av.error import FFmpegError

    return FFmpegError, OSError  # PyAV raises some system errors as OSError


def _reason(error: Exception) -> str:
    """Return FFmpeg's text of the error, with FFmpeg's last log message if there is one."""
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
        if regular := stat.S_ISREG(status.st_mode):  # opening a pipe would block
            path.open("rb").close()
    except OSError as error:
        raise VideoError(f"{path} cannot be read", got=error.strerror, remedy=CHECK_PATH) from error
    if not regular or status.st_size == 0:
        got = "an empty file" if regular else "a directory" if path.is_dir() else "a pipe or device"
        raise VideoError(f"{path} cannot be read", got=got, expected="a video file")


def _note(decoded: _Decoded, frames: int) -> str:
    """Say what a reader of the results should know about the reading of the clip, or ""."""
    count, faults = decoded.count, decoded.faults
    notes = [
        count < frames and f"shorter than asked ({count} of {frames} frames), so frames repeat",
        faults
        and f"damaged ({len(faults)} errors, first: {faults[0]}), used the frames that decode",
        decoded.damaged and f"damaged frames: {decoded.damaged}, used as FFmpeg repairs them",
        decoded.missing and f"{decoded.missing}: perhaps truncated, used the frames present",
    ]
    return "; ".join(note for note in notes if note)
