"""Read a long file, or a live source, as clips of a fixed length: one window after the other.

Window k holds the frames whose time t satisfies `k stride <= t < k stride + length`, counted from
the first frame. It is read as if it had been cut out into a file of its own. Memory is bounded by
the decoded frames of one window.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import UsageError, VideoError
from exporter.inputs.container import check_file, frames, is_live, name_of, open_live, open_video
from exporter.inputs.decode import Decoded
from exporter.inputs.resize import Frame
from exporter.inputs.sampling import clip_indices
from exporter.inputs.survey import Survey
from exporter.inputs.video import Clip, check_channels, make_clip
from model.config import ClipConfig
from model.preprocessing import Preprocessing

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.stream import VideoStream

MOST_BYTES = 2**30  # of the decoded frames of a window
_LEAST_SECONDS = Fraction(1, 1000)  # of a stride: less would make windows without end
_MOST_SECONDS = 86_400  # a day
_BACK = 4  # frames; times that go back further start again
_FALLBACK_RATE = 25  # frames per second where the source tells neither times nor a rate


@dataclass(frozen=True)
class Windows:
    """How a source is cut: the length of a window, and from one window to the next, in seconds.

    Raises:
        UsageError: if one of them is no time between a millisecond and a day.
    """

    length: Fraction
    stride: Fraction

    def __post_init__(self) -> None:
        for name, value in (("--window", self.length), ("--stride", self.stride)):
            if not _LEAST_SECONDS <= value <= _MOST_SECONDS:
                expected = f"1 ms to {_MOST_SECONDS:,} s"
                raise UsageError(name, got=f"{float(value):g} s", expected=expected)

    @classmethod
    def parse(cls, length: str, stride: str | None = None) -> Windows:
        """Read `2s`, `500ms` or `1.5`; without a stride, windows follow each other."""
        seconds = _seconds("--window", length)
        return cls(seconds, seconds if stride is None else _seconds("--stride", stride))


@dataclass(frozen=True, eq=False)
class Window:
    """One window: its limits in seconds from the first frame, and its clip.

    A window that the source does not fill ends where its last frame ends.
    `lag` is the time from the end of the window at the source, or of the source, until the clip was
    read, in seconds, by the clock of the frame that came fastest; None for a file, which does not
    run on its own.
    `held_mb` is the memory of the decoded frames.
    """

    start: float
    end: float
    clip: Clip
    lag: float | None
    held_mb: float


def _seconds(name: str, text: str) -> Fraction:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,20})?|\.\d{1,20})\s*(s|ms|m)?", text.strip().lower())
    if match is None:
        raise UsageError(name, got=repr(text), expected="a time, as 2s, 500ms or 1.5")
    return Fraction(match[1]) * {"ms": Fraction(1, 1000), "m": 60}.get(match[2], 1)


def read_windows(
    source: str, windows: Windows, config: ClipConfig, preprocessing: Preprocessing
) -> Iterator[Window]:
    """Yield the windows of a source, in the order of time, each as soon as it is complete.

    A last window that is not complete is read if it holds frames that no other one holds.

    Args:
        source: A file, a pipe (`pipe:0` is standard input), a device or a URL that PyAV opens.
        windows: How the source is cut.
        config: Sizes of a clip.
        preprocessing: How a window is read.

    Raises:
        VideoError: if the source cannot be read, or a window needs too much memory.
    """
    check_channels(config.channels, preprocessing)
    if not (live := is_live(source)):
        check_file(Path(source), windows=True)
    with open_live(source) if live else open_video(source) as stream:
        # Several threads hold frames back, and with them the answers about a live source.
        stream.thread_type = "SLICE" if live else "AUTO"
        cut = _Cut(stream, windows, config, preprocessing, live)
        for frame in frames(stream, cut.faults):
            yield from cut.take(frame)
        yield from cut.rest()


@dataclass
class _Cut:
    """The state of cutting one stream: the frames that a coming window needs."""

    stream: VideoStream
    windows: Windows
    config: ClipConfig
    how: Preprocessing
    live: bool
    faults: list[str] = field(default_factory=list)
    held: deque[tuple[Fraction, VideoFrame]] = field(default_factory=deque)
    number: int = 0  # of the next window
    count: int = 0  # of frames so far
    shown: Fraction = Fraction(-1)  # the time of the last frame that a window held
    first: int | None = None  # the time of the first frame, in units of the stream
    last: Fraction = Fraction(0)  # the time of the last frame
    began: float = math.inf  # when the source began, by the clock: no frame came earlier

    @property
    def start(self) -> Fraction:
        return self.number * self.windows.stride

    def take(self, frame: VideoFrame) -> Iterator[Window]:
        """Add one frame; yield the windows that end before it."""
        at = self._time(frame)
        self.began = min(self.began, time.monotonic() - float(at))
        while self.held and at >= (end := self.start + self.windows.length):
            yield from self._read(end, end)
        if not self.held:  # pass over empty windows: a camera that sets its clock leaves many
            ended = (at - self.windows.length) // self.windows.stride + 1
            self.number = max(self.number, ended)
        if at >= self.start:
            self.held.append((at, frame))
            if (size := self._held_bytes()) > MOST_BYTES:
                raise VideoError(
                    f"a window of {name_of(self.stream)} holds too many frames",
                    got=f"{size / 1e6:.0f} MB after {float(at - self.start):.1f} s",
                    expected=f"at most {MOST_BYTES / 1e6:.0f} MB",
                    remedy="give a shorter --window, or make the frames smaller",
                )

    def rest(self) -> Iterator[Window]:
        """Yield the windows that hold frames which no window before them held."""
        if not self.count:
            reason = self.faults[0] if self.faults else None
            raise VideoError(f"{name_of(self.stream)} has no frame that decodes", got=reason)
        while self.held and (last := self.held[-1][0]) > self.shown:
            full, ended = self.start + self.windows.length, last + self._frame_time
            short = full - ended > (self.stream.time_base or 0)  # containers round times to it
            yield from self._read(ended if short else full, last)

    @property
    def _frame_time(self) -> Fraction:
        return 1 / Fraction(self.stream.average_rate or _FALLBACK_RATE)

    def _time(self, frame: VideoFrame) -> Fraction:
        self.count += 1
        if self.count == 1:
            self.first = frame.pts
        if frame.pts is None or self.first is None or not self.stream.time_base:
            return (self.count - 1) * self._frame_time
        base = self.stream.time_base
        at = (frame.pts - self.first) * base
        if at < self.last - _BACK * self._frame_time:  # files one after another, a new encoder
            self.faults.append(f"the time stamps start again after {float(self.last):.1f} s")
            self.first -= round((self.last + self._frame_time - at) / base)
            at = (frame.pts - self.first) * base
        self.last = max(self.last, at)
        return at

    def _read(self, end: Fraction, complete: Fraction) -> Iterator[Window]:
        """Read the oldest window, and let go what no later one needs; it may be empty.

        `complete` is the time at which the source has given all of its frames.
        """
        start = self.start
        inside = [(at, frame) for at, frame in self.held if at < end]
        self.number += 1
        held = self._held_bytes()
        if inside:
            self.shown = inside[-1][0]
            clip = self._clip(inside)
            lag = time.monotonic() - self.began - float(complete) if self.live else None
            yield Window(float(start), float(end), clip, lag, held / 1e6)
        while self.held and self.held[0][0] < self.start:
            self.held.popleft()

    def _clip(self, inside: list[tuple[Fraction, VideoFrame]]) -> Clip:
        fps, how, size = self.stream.average_rate, self.how, self.config
        to = Frame.of(how, size.height, size.width)
        each = clip_indices(how.sampled, len(inside), size.frames, how.views.clips, fps)
        indices = tuple(chain.from_iterable(each))
        taken = Decoded(count=len(inside), fps=fps, faults=[*self.faults])
        for index in sorted(set(indices)):
            at, frame = inside[index]
            taken.keep(index, frame, self.stream, to)
            taken.times[index] = float(at)
            taken.damaged += frame.is_corrupt
        self.faults.clear()
        found = Survey(len(inside), "", "", fps)
        return make_clip(taken, found, indices, (size.frames, size.channels), how)

    def _held_bytes(self) -> int:
        one = sum(plane.buffer_size for plane in self.held[-1][1].planes) if self.held else 0
        return len(self.held) * one
