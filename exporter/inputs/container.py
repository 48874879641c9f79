"""Open a clip file: its best video stream, packets and frames, with FFmpeg's reasons (PyAV)."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from exporter.errors import VideoError

# Import `av` only when a clip is read.
if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

# How FFmpeg's threads share the work on a file. Where a process for each core decodes, threads cost
# more than they save: for short clips a fifth of the time.
THREAD_TYPE: ContextVar[Literal["AUTO", "NONE"]] = ContextVar("THREAD_TYPE", default="AUTO")
MAX_PIXELS = 2**26  # of a frame: 8192 x 8192, twice 8K; one frame then takes 200 MB as RGB
_PIPE = "pipe:"  # FFmpeg's name of a file descriptor
_NETWORK_TIMEOUT = 10_000_000  # microseconds that a URL may stay silent
CHECK_PATH = "check the path and its permissions"
REENCODE = "check that the file is complete, or re-encode it, for example to H.264 in .mp4"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters at least: C:/ is a drive
_CAMERA = re.compile(r"/dev/|\d+$|[A-Za-z]+=")  # /dev/video0, 0 and video=Name, as tools write them


@contextmanager
def open_video(path: Path | str) -> Iterator[VideoStream]:
    """Open the best video stream; with `file:`, no name or playlist can reach the network."""
    with _open(str(path), f"file:{path}", {}) as stream:
        yield stream


@contextmanager
def open_live(source: str) -> Iterator[VideoStream]:
    """Open a pipe (`pipe:0`: standard input), a device, or a URL that the user gave."""
    named = _URL.match(source) or source.startswith(("/dev/", _PIPE))
    what = source if named else f"file:{source}"
    options = {"rw_timeout": str(_NETWORK_TIMEOUT)} if _URL.match(source) else {}
    kind = "v4l2" if source.startswith("/dev/video") else None
    with _open(source, what, options, kind) as stream:
        yield stream


def is_live(source: str) -> bool:
    """Whether a source runs on its own: standard input, a pipe, a device, or a URL."""
    if source.startswith(_PIPE) or _URL.match(source):
        return True
    try:
        mode = Path(source).stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def _open(
    name: str,
    what: str,
    more: dict[str, str],
    kind: str | None = None,
) -> Iterator[VideoStream]:
    import av
    from av.logging import PANIC, get_level, set_level

    level = get_level()
    try:
        try:
            set_level(PANIC)  # print nothing, but keep FFmpeg's message in the errors
            container = av.open(
                what,
                format=kind,
                options={"max_pixels": str(MAX_PIXELS), **more},
                metadata_errors="replace",  # titles and names are not always UTF-8
            )
        finally:
            set_level(level)  # before decoding: logging from decoder threads needs the GIL
        with container:
            yield _video_stream(name, cast("InputContainer", container))
    except _av_errors() as error:  # also where FFmpeg cannot convert the pixel format to RGB
        if _URL.match(name):
            what, remedy = f"{name} cannot be read", "check the address and the network"
        else:
            what, remedy = f"{name} is not a video", REENCODE
        raise VideoError(what, got=reason(error), remedy=remedy) from error


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    from av.stream import Disposition
    from av.video.stream import VideoStream

    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = sorted({other.type for other in container.streams if other is not stream})
        got = f"only {', '.join(kinds) or 'an empty container'}"
        torn = kinds == ["data"]  # its index ends before it says what the streams are
        remedy = REENCODE if torn else "give a video file"
        raise VideoError(f"{path} has no video stream", got=got, remedy=remedy)
    if container.format.name == "tty":  # FFmpeg reads any .txt as the screen of a terminal
        raise VideoError(f"{path} is not a video", got="text", remedy="give a video file")
    context = stream.codec_context
    if context is None:
        raise VideoError(f"{path}: this FFmpeg cannot decode its codec", remedy=REENCODE)
    if context.width * context.height > MAX_PIXELS:
        raise VideoError(
            f"{path} has frames that are too large",
            got=f"{context.height}x{context.width}",
            expected=f"at most {MAX_PIXELS:,} pixels",
            remedy="make the clip smaller, for example with ffmpeg -vf scale",
        )
    context.options = {"max_pixels": str(MAX_PIXELS)}  # a frame may be larger than the header says
    return stream


def name_of(stream: VideoStream) -> str:
    """Return the path or the URL of the file that a stream is in."""
    return cast("InputContainer", stream.container).name.removeprefix("file:")


def packets(stream: VideoStream, faults: list[str]) -> Iterator[Packet[VideoStream] | None]:
    """Yield the stream's packets; the last is empty or None, which flushes the decoder."""
    try:
        yield from cast("InputContainer", stream.container).demux(stream)
    except _av_errors() as error:
        faults.append(reason(error))
        yield None


def all_packets(stream: VideoStream) -> Iterator[Packet]:
    """Yield the packets of all streams of the file, up to the end or the first error."""
    try:
        yield from cast("InputContainer", stream.container).demux()
    except _av_errors():
        return


def frames(stream: VideoStream, faults: list[str]) -> Iterator[VideoFrame]:
    """Yield all frames that decode; skip the others and note the error in `faults`."""
    for packet in packets(stream, faults):
        try:
            yield from stream.decode(packet)
        except _av_errors() as error:
            faults.append(reason(error))


def packets_from(
    stream: VideoStream, stamp: int, faults: list[str]
) -> Iterator[tuple[Packet[VideoStream] | None, list[VideoFrame]]]:
    """Seek to the key frame at or before a decoding time; yield packets and what they decode to."""
    try:
        cast("InputContainer", stream.container).seek(stamp, stream=stream)
    except _av_errors() as error:
        faults.append(reason(error))
        return
    for packet in packets(stream, faults):
        try:
            yield packet, stream.decode(packet)
        except _av_errors() as error:
            faults.append(reason(error))


def _av_errors() -> tuple[type[Exception], ...]:
    from av.error import FFmpegError

    return FFmpegError, OSError  # PyAV raises some system errors as OSError


def reason(error: Exception) -> str:
    """Return FFmpeg's text of the error, with FFmpeg's last log message if there is one."""
    text = getattr(error, "strerror", None) or type(error).__name__
    log = getattr(error, "log", None)  # (level, component, message)
    return f"{text} ({log[2].strip()})" if log else text


def check_file(path: Path, *, windows: bool = False) -> None:
    """Check that the path is a file that can be read.

    Args:
        path: The path.
        windows: It is read in windows, so a URL, a pipe or a device could be read too.

    Raises:
        VideoError: if it is a URL, a device, a pipe, a folder, or an empty or missing file.
    """
    try:
        status = path.stat()
        if regular := stat.S_ISREG(status.st_mode):  # opening a pipe would block
            path.open("rb").close()
    except (OSError, ValueError) as error:  # ValueError: of a path with a null character
        if (kind := _not_a_file(str(path))) and not isinstance(error, PermissionError):
            shown = str(path)
            if _URL.match(shown):  # `Path` took one of its slashes
                shown = shown.replace(":/", "://", 1)
            raise VideoError(
                f"{shown} cannot be read{'' if windows else ': clips are files'}",
                got=kind,
                remedy=CHECK_PATH
                if windows
                else "save it to a file first, as with ffmpeg -i, or predict with --window 2s",
            ) from error
        got = error.strerror if isinstance(error, OSError) else str(error)
        raise VideoError(f"{path} cannot be read", got=got, remedy=CHECK_PATH) from error
    if not regular or status.st_size == 0:
        got = "an empty file" if regular else "a directory" if path.is_dir() else "a pipe or device"
        raise VideoError(f"{path} cannot be read", got=got, expected="a video file")


def is_animated_webp(path: Path) -> bool:
    """Whether a file is a WebP of several pictures, which FFmpeg may not decode."""
    with path.open("rb") as file:
        head = file.read(21)
    extended = len(head) == 21 and head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X"
    return extended and bool(head[20] & 2)


def _not_a_file(path: str) -> str:
    """Say what a path that names no file seems to name: a URL, a pipe or a device; else ""."""
    if _URL.match(path):
        return "a URL"
    if path.startswith(_PIPE):
        return "a pipe"
    return "a device that is not there" if _CAMERA.match(path) else ""
