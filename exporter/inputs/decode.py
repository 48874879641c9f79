"""Decode the wanted frames of a clip file: all of it, or from the key frames before them."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.errors import VideoError
from exporter.inputs.colour import Convert, hdr, pixel_aspect, upright_rgb
from exporter.inputs.container import (
    REENCODE,
    THREAD_TYPE,
    frames,
    is_animated_webp,
    name_of,
    open_video,
    packets_from,
)
from exporter.inputs.resize import Frame
from exporter.inputs.survey import Survey

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.stream import VideoStream

_SEEK_COST = 16  # frames that could be decoded in the time of one seek
_ANIMATED = "an animated WebP, which this FFmpeg does not decode"
_TO_GIF = "save it as GIF or MP4, or its pictures into a folder, as magick CLIP.webp CLIP.gif does"
_WORTH_SEEKING = 4  # seek if that many times fewer frames are decoded


@dataclass
class Decoded:
    """Frames of a file, and what was seen while they were decoded.

    `images` maps the index of a frame to its crops `(k, 3, h, w)` float32, in levels of 255;
    `times` maps it to its time in seconds from the start of the file. `sizes` are the sizes of the
    upright frames kept, and `source_size` is that of the last one.
    """

    count: int = 0
    images: dict[int, np.ndarray] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    fps: Fraction | None = None
    source_size: tuple[int, int] = (0, 0)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    aspect: Fraction = Fraction(1)
    hdr: str = ""
    damaged: int = 0
    faults: list[str] = field(default_factory=list)

    @cached_property
    def _convert(self) -> Convert:
        from av.video.reformatter import VideoReformatter

        return VideoReformatter().reformat

    def keep(self, index: int, frame: VideoFrame, stream: VideoStream, to: Frame) -> None:
        """Resize and keep one frame."""
        try:
            image, turned = upright_rgb(frame, self._convert)
        except OSError as error:
            raise VideoError(
                f"{name_of(stream)}: this FFmpeg cannot convert its colours to RGB",
                got=f"{frame.format.name} with the matrix {frame.colorspace} of ITU-T H.273",
                remedy="convert it to BT.709, for example with ffmpeg -vf zscale=m=709",
            ) from error
        self.aspect = pixel_aspect(stream.sample_aspect_ratio, turned=turned)
        self.source_size = image.shape[0], image.shape[1]
        self.sizes.add(self.source_size)
        self.images[index] = to.crops_of(image, self.aspect)
        self.hdr = self.hdr or hdr(frame)
        if frame.pts is not None and stream.time_base:
            first = stream.start_time or 0
            self.times[index] = float((frame.pts - first) * stream.time_base)
        elif self.fps:
            self.times[index] = float(index / self.fps)


def decode_frames(
    path: Path, found: Survey, choose: Callable[[int], Collection[int]], to: Frame
) -> Decoded:
    """Decode the frames that `choose` wants of a file of N frames, and resize them.

    Decode from the key frames before them where the file allows it and it is much less work.
    Else decode the whole file. Repeat if its frame count is not the expected one. The first pass is
    usually enough, because the number of packets is usually the frame count.

    Raises:
        VideoError: if no frame decodes, or the file decodes differently each time.
    """
    if (
        decoded := _decode_from_keys(path, found, sorted(set(choose(found.frames))), to)
    ) is not None:
        return decoded
    guess, threads = found.frames, THREAD_TYPE.get()
    for _ in range(3):
        wanted = set(choose(guess)) if guess else set()
        decoded = _decode_all(path, wanted, to, threads)
        if decoded.count == 0:
            reason = next(iter(decoded.faults), None)
            reason, remedy = (_ANIMATED, _TO_GIF) if is_animated_webp(path) else (reason, REENCODE)
            raise VideoError(f"{path} has no frame that decodes", got=reason, remedy=remedy)
        # With several threads, FFmpeg repairs a damaged frame differently from run to run, and PyAV
        # loses the frames after one that is damaged near the end, without an error.
        whole = decoded.count >= found.frames and not (decoded.faults or decoded.damaged)
        repeatable = threads == "NONE" or whole
        if repeatable and decoded.count == guess:
            return decoded
        guess, threads = decoded.count, threads if repeatable else "NONE"
    raise VideoError(f"{path} decodes differently each time", remedy=REENCODE)


def _decode_all(path: Path, wanted: set[int], to: Frame, threads: str) -> Decoded:
    """Decode the whole stream; keep only the `wanted` frames."""
    decoded = Decoded()
    with open_video(path) as stream:
        stream.thread_type = threads
        decoded.fps = stream.average_rate
        for frame in frames(stream, decoded.faults):
            if decoded.count in wanted:
                decoded.keep(decoded.count, frame, stream, to)
            decoded.count += 1
            decoded.damaged += frame.is_corrupt
    return decoded


def _decode_from_keys(path: Path, found: Survey, wanted: list[int], to: Frame) -> Decoded | None:
    """Seek to the key frames before the wanted frames, and decode from there.

    Return None if that is not much less work, or if anything is not as the survey says: then the
    whole stream is decoded, which tells what is wrong.
    """
    runs = _runs(found, wanted)
    work = sum(run[-1] - key + _SEEK_COST for key, run in runs)
    if not runs or found.missing or work * _WORTH_SEEKING > found.frames:
        return None
    decoded = Decoded(count=found.frames)
    with open_video(path) as stream:
        stream.thread_type = THREAD_TYPE.get()
        decoded.fps = stream.average_rate
        for key, run in runs:
            left = set(run)
            for index, frame in _frames_from(stream, found, key, decoded.faults):
                if index in left:
                    decoded.keep(index, frame, stream, to)
                    left.remove(index)
                if decoded.faults or frame.is_corrupt or index < 0 or not left:
                    break
            if left or decoded.faults:
                return None
    return decoded


def _runs(found: Survey, wanted: list[int]) -> list[tuple[int, list[int]]]:
    """Group the wanted frames by the key frame to seek to; nearby groups are one run.

    Frames that are shown before a key frame may follow it in the file. So a run starts at a key
    frame that lies one key frame earlier than needed by the order of the packets, unless the wanted
    frame lies well behind the key frame.
    """
    runs: list[tuple[int, list[int]]] = []
    keys = sorted(found.keys)
    for index in wanted:
        place = bisect_right(keys, max(index - _SEEK_COST, 0)) - 1
        if place < 0:
            return []
        key = keys[place]
        if runs and key - runs[-1][1][-1] < _SEEK_COST:
            runs[-1][1].append(index)
        else:
            runs.append((key, [index]))
    return runs


def _frames_from(
    stream: VideoStream, found: Survey, key: int, faults: list[str]
) -> Iterator[tuple[int, VideoFrame]]:
    """Seek to the packet `key`; yield the frames from there with their indices, -1 if unknown.

    A frame's index is the number of frames that are shown before it: the packets before the key
    frame, and the packets since with an earlier time, all of which are read before it is decoded.
    """
    places = {time: place for place, time in found.keys.items()}
    seek = found.seek.get(key, found.keys[key])
    times: list[int] = []
    first = -1
    for packet, decoded in packets_from(stream, seek, faults):
        if packet is not None and packet.size:
            if first < 0:
                first = places.get(getattr(packet, found.timed_by), -1)
            if packet.pts is not None:
                insort(times, packet.pts)
        for frame in decoded:
            if frame.pts is None or not 0 <= first <= key:
                yield -1, frame
            else:
                yield first + bisect_right(times, frame.pts) - 1, frame
