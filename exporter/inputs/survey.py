"""What the packets of a clip tell before anything is decoded: count, times, and what is missing."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from exporter.inputs.container import all_packets, open_video

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_REORDERED = 16  # frames by which decoding may run ahead of showing
_UNEVEN = 1.5  # a gap this many times the median gap, or less than its inverse, is another rate


@dataclass(frozen=True)
class Survey:
    """What a pass over the packets, or the index of the file, tells.

    Attributes:
        frames: Packets that should decode to a frame: not empty, and not cut away by the file.
        missing: What the header promises and the file does not hold, or "".
        uneven: The range of the gaps between frames if the frame rate varies, or "".
        fps: Frames per second on average; None where the file does not tell.
        keys: The packets from which decoding can start: the place of each among all packets -> its
            time, in units of the stream's time base. Empty if not every packet gives a frame.
        seek: The time to seek to for each key packet, if that is not its own time.
        timed_by: Which time of a packet that is: `dts`, of decoding, or `pts`, of showing.
    """

    frames: int
    missing: str
    uneven: str
    fps: Fraction | None = None
    keys: Mapping[int, int] = field(default_factory=dict)
    seek: Mapping[int, int] = field(default_factory=dict)
    timed_by: str = "dts"


def survey(path: Path) -> Survey:
    """Read all packets of a clip, of every stream, without decoding them.

    A file with a whole index is not read: the index tells the same.

    Raises:
        VideoError: if the file is not a video.
    """
    with open_video(path) as stream:
        return _read_index(path, stream) or _read_packets(stream)


def _read_index(path: Path, stream: VideoStream) -> Survey | None:
    """Return what the index of the file tells, or None if it does not list every frame."""
    entries = list(stream.index_entries)
    whole = stream.frames and len(entries) == stream.frames
    if not whole or any(entry.is_discard or not entry.size for entry in entries):
        return None
    # A file that is cut short keeps its index.
    if max(entry.pos + entry.size for entry in entries) > path.stat().st_size:
        return None
    stamps = array("q", (entry.timestamp for entry in entries))
    keys = [place for place, entry in enumerate(entries) if entry.is_keyframe]
    # The index has decoding times. To seek there, FFmpeg needs a time at or after the time at which
    # the key frame is shown.
    nexts = [*keys[1:], len(entries)]
    shown = {key: min(key + _REORDERED, after - 1) for key, after in zip(keys, nexts, strict=True)}
    return Survey(
        len(entries),
        "",
        _uneven(stamps, float(stream.time_base or 0)),
        stream.average_rate,
        {key: stamps[key] for key in keys},
        {key: stamps[place] for key, place in shown.items()},
    )


def _read_packets(stream: VideoStream) -> Survey:
    shown = stored = 0
    times = array("q")  # of the frames shown, in units of the stream's time base
    keys: dict[int, int] = {}
    video_end = file_end = 0.0  # in seconds
    for packet in all_packets(stream):
        if not packet.size or packet.is_corrupt:  # corrupt: the file ends inside of it
            shown += bool(packet.size and packet.stream is stream and not packet.is_discard)
            continue
        time = packet.pts if packet.pts is not None else packet.dts
        end = float(((time or 0) + (packet.duration or 0)) * (packet.time_base or 0))
        file_end = max(file_end, end)
        if packet.stream is not stream:
            continue
        if packet.is_keyframe and packet.pts is not None:
            keys[stored] = packet.pts
        video_end, stored = max(video_end, end), stored + 1
        if not packet.is_discard:
            shown += 1
            if time is not None:
                times.append(time)
    missing = _missing(stream, stored, video_end, file_end)
    uneven = _uneven(times, float(stream.time_base or 0))
    return Survey(
        shown, missing, uneven, stream.average_rate, keys if stored == shown else {}, timed_by="pts"
    )


def _missing(stream: VideoStream, stored: int, video_end: float, file_end: float) -> str:
    """Say what is missing compared with the header, or "".

    A file is whole if it holds as many packets as its header says, or if its packets reach the end
    that its header says: AVI counts empty frames, and a trimmed copy holds frames that it hides.
    """
    start = float((stream.start_time or 0) * (stream.time_base or 0))
    if stream.frames:
        step = 1 / float(stream.average_rate or 25)
        promised = float((stream.duration or 0) * (stream.time_base or 0))
        whole = stored >= stream.frames or (promised and video_end - start >= promised - step)
        return "" if whole else f"its header says {stream.frames} frames, {stored} are there"
    seconds = (cast("InputContainer", stream.container).duration or 0) / 1e6  # microseconds
    # A container's length is that of its longest stream, which need not be the picture.
    whole = file_end - min(start, 0.0) >= 0.98 * seconds - 0.5
    return "" if whole else f"its header says {seconds:.1f} s, it ends at {file_end:.1f} s"


def _uneven(times: array[int], time_base: float) -> str:
    """Return the range of the gaps between frames, in milliseconds, or "" for an even rate."""
    gaps = np.diff(np.sort(np.frombuffer(times, np.int64))) if len(times) > 2 else np.empty(0)
    gaps = gaps[gaps > 0]
    if not gaps.size or time_base == 0:
        return ""
    middle = np.median(gaps)
    # Containers round times to their time base: one unit more or less is no other rate.
    if gaps.max() <= _UNEVEN * middle + 1 and gaps.min() >= middle / _UNEVEN - 1:
        return ""
    return f"{1000 * gaps.min() * time_base:.0f} to {1000 * gaps.max() * time_base:.0f} ms"
