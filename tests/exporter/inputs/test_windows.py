"""A window of a long file or a live source is read as a clip that was cut out by hand."""

import math
import os
import time
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from exporter.errors import UsageError, VideoError
from exporter.inputs import windows as windows_module
from exporter.inputs.clips import read_for
from exporter.inputs.windows import Windows, read_windows
from model.config import ClipConfig
from model.preprocessing import Preprocessing
from model.sampling import Sampling

CONFIG = ClipConfig(4, 3, 32, 32, 2)
PLAIN = Preprocessing()
DENSE = Preprocessing(sampling=Sampling.parse("dense:5@25"))
RATE = 25


def pictures(count: int) -> list[np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    return [np.roll(noise, (index, 3 * index), (0, 1)) for index in range(count)]


def cut(source: Path, length: str, stride: str | None = None, how=PLAIN):
    return list(read_windows(str(source), Windows.parse(length, stride), CONFIG, how))


@pytest.fixture(scope="module")
def long(tmp_path_factory, write_clip) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "long.mkv", pictures(130))


@pytest.mark.parametrize("how", [PLAIN, DENSE], ids=["uniform", "dense"])
@pytest.mark.parametrize(("length", "stride"), [("2s", "1s"), ("1s", None), ("500ms", "1.5s")])
def test_a_window_equals_the_clip_that_was_cut_by_hand(
    tmp_path, long, how, length, stride, write_clip
):
    found = cut(long, length, stride, how)
    step = Windows.parse(length, stride)
    assert len(found) > 2
    for number, window in enumerate(found):
        limits = (number * step.stride, number * step.stride + step.length)
        first, last = (math.ceil(RATE * limit) for limit in limits)
        assert window.start == number * step.stride
        assert window.end == min(window.start + step.length, 130 / RATE)
        assert window.lag is None
        by_hand = read_for(CONFIG, how, write_clip(tmp_path / "cut.mkv", pictures(130)[first:last]))
        np.testing.assert_array_equal(window.clip.array, by_hand.array)
        assert window.clip.indices == by_hand.indices
        times = [(first + index) / RATE for index in by_hand.indices]
        assert window.clip.times == pytest.approx(times)


@pytest.mark.parametrize(
    ("length", "stride", "starts"),
    [
        ("2s", "2s", [0, 2, 4]),  # the last one holds what is left: 130 frames are 5.2 s
        ("2s", "1s", [0, 1, 2, 3, 4]),
        ("1s", "3s", [0, 3]),
        ("1m", None, [0]),
    ],
)
def test_every_frame_is_in_a_window_where_windows_overlap_or_touch(long, length, stride, starts):
    found = cut(long, length, stride)
    assert [window.start for window in found] == starts


def test_a_last_window_that_is_too_short_says_so(long):
    short = cut(long, "2.1s")[-1].clip
    assert short.source_frames == 130 - 2 * 53 + 1  # 4.2 s to 5.2 s


@pytest.mark.parametrize("rate", [24, 25, 30])
def test_the_last_window_ends_where_the_file_ends(tmp_path, write_clip, rate):
    """Matroska rounds times to milliseconds, which makes no window short."""
    whole = cut(write_clip(tmp_path / "whole.mkv", pictures(4 * rate), rate), "2s")
    assert [window.end for window in whole] == [2, 4]
    short = cut(write_clip(tmp_path / "short.mkv", pictures(3 * rate), rate), "2s")
    assert [window.end for window in short] == [2, pytest.approx(3, abs=1e-3)]


def test_time_goes_on_where_the_time_stamps_start_again(tmp_path):
    """As in a file that was made of two, or where a camera was started again."""
    images, parts = pictures(100), [tmp_path / "0.ts", tmp_path / "1.ts"]
    for part, half in zip(parts, (images[:50], images[50:]), strict=True):
        with av.open(part, "w") as container:
            stream = cast("VideoStream", container.add_stream("mpeg2video", rate=RATE))
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for image in half:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    windows = cut(joined, "1s")
    assert [window.start for window in windows] == [0, 1, 2, 3]
    alone = [window.clip.array for part in parts for window in cut(part, "1s")]
    for window, expected in zip(windows, alone, strict=True):
        np.testing.assert_array_equal(window.clip.array, expected)
    said = ["the time stamps start again after 2.0 s" in window.clip.note for window in windows]
    assert sum(said) == 1


def test_a_live_source_is_read_as_it_comes_with_its_lag_and_bounded_memory(tmp_path, write_clip):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seen: list[float] = []

    def send():
        with pipe.open("wb") as out, av.open(out, "w", format="nut") as container:
            stream = cast("VideoStream", container.add_stream("ffv1", rate=RATE))
            stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
            for image in pictures(100):
                time.sleep(0.002)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    sender = Thread(target=send)
    sender.start()
    found = []
    for window in read_windows(str(pipe), Windows.parse("1s"), CONFIG, PLAIN):
        seen.append(time.monotonic())
        found.append(window)
    sender.join()
    assert [window.start for window in found] == [0, 1, 2, 3]
    assert all(window.lag is not None for window in found)
    one_frame = 64 * 48 * 4 / 1e6
    assert max(window.held_mb for window in found) <= 27 * one_frame
    whole = cut(write_clip(tmp_path / "same.mkv", pictures(100)), "1s")
    for live, kept in zip(found, whole, strict=True):
        np.testing.assert_array_equal(live.clip.array, kept.clip.array)


def test_a_url_is_a_live_source(long):
    class Served(BaseHTTPRequestHandler):
        def do_GET(self):  # the name that the base class calls
            self.send_response(200)
            self.end_headers()
            self.wfile.write(long.read_bytes())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Served)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/long.mkv"
        found = list(read_windows(url, Windows.parse("2s"), CONFIG, PLAIN))
    finally:
        server.shutdown()
        server.server_close()
    assert len(found) == 3
    assert all(window.lag >= 0 for window in found)  # the last one ends after the source
    for served, kept in zip(found, cut(long, "2s"), strict=True):
        np.testing.assert_array_equal(served.clip.array, kept.clip.array)


def test_the_empty_windows_of_a_gap_take_no_time(tmp_path, monkeypatch):
    gap, read, reads = 1000, windows_module._Cut._read, []  # seconds
    with av.open(str(tmp_path / "gap.mkv"), "w") as container:
        stream = cast("VideoStream", container.add_stream("ffv1", rate=RATE))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for index, image in enumerate(pictures(4)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, RATE), index + (index > 1) * gap * RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    monkeypatch.setattr(
        windows_module._Cut, "_read", lambda *given: reads.append(given) or read(*given)
    )
    found = cut(tmp_path / "gap.mkv", "10ms")
    assert [window.start for window in found] == [0, 0.04, 1000.08, 1000.12]
    assert len(reads) < 20


def test_a_window_of_too_many_frames_is_refused(long, monkeypatch):
    monkeypatch.setattr(windows_module, "MOST_BYTES", 20 * 64 * 48 * 4)
    with pytest.raises(VideoError, match=r"holds too many frames.*shorter --window"):
        cut(long, "2s")
    assert len(cut(long, "500ms")) > 5


@pytest.mark.parametrize(
    ("length", "stride"),
    [
        *(("0s", None), ("2s", "0"), ("two", None), ("-1s", None), ("2h", None)),
        *(("2s", "0.0000001s"), ("99999999999s", None), ("2s", "1441m")),
        pytest.param("9" * 5000 + "s", None, id="long"),
        pytest.param("0." + "9" * 5000, None, id="many decimals"),
    ],
)
def test_a_wrong_time_is_a_usage_error(length, stride):
    with pytest.raises(UsageError, match=r"--window|--stride"):
        Windows.parse(length, stride)


def test_times_are_read_exactly():
    assert Windows.parse("100ms", ".1s") == Windows(Fraction(1, 10), Fraction(1, 10))
    third = Fraction(3333333333333333, 10**16)
    assert Windows.parse(repr(1 / 3)) == Windows(third, third)


def test_a_file_without_frames_is_an_error(tmp_path):
    path = tmp_path / "no.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(VideoError, match="is not a video"):
        cut(path, "1s")


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"absent\.mp4 cannot be read: got No such file"):
        cut(tmp_path / "absent.mp4", "1s")
    with pytest.raises(VideoError, match="got a directory, expected a video file"):
        cut(tmp_path, "1s")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/dev/video99", "got a device that is not there; check the path and its permissions"),
        ("http://127.0.0.1:9/a.mp4", "Connection refused"),
        ("http://127.0.0.1:9/a.mp4", "; check the address and the network"),
    ],
)
def test_a_live_source_that_is_not_there_says_so_and_asks_for_no_window(source, said):
    with pytest.raises(VideoError) as caught:
        cut(source, "1s")
    assert str(caught.value).startswith(f"{source} cannot be read: got ")
    assert said in str(caught.value)
    assert "--window" not in str(caught.value)
    assert "re-encode" not in str(caught.value)
