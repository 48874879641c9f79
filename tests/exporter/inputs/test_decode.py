"""Seeking gives the frames that decoding the whole file gives."""

import time
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from exporter.inputs import decode
from exporter.inputs.resize import Frame
from exporter.inputs.survey import survey
from exporter.inputs.video import read_clip
from model.preprocessing import Preprocessing
from model.sampling import Sampling

TO = Frame(32, 32)


def moving(path: Path, count: int, rate: int = 30, codec: str = "libx264", **options: str) -> Path:
    """Write a clip in which every frame differs: a bar that moves over noise."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 120, (48, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=rate, options=options))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(count):
            image = np.roll(noise, index, axis=1)
            image[:, (7 * index) % 64 :][:, :6] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": "50"}),
        ("b.mkv", "libx264", {"g": "48", "bf": "3"}),
        ("open.mp4", "libx264", {"g": "30", "bf": "3", "x264-params": "open-gop=1"}),
        ("c.mp4", "mpeg4", {"g": "25", "bf": "2"}),
        ("d.ts", "libx264", {"g": "40"}),
        ("e.webm", "libvpx-vp9", {"g": "40", "deadline": "realtime", "cpu-used": "8"}),
        ("f.avi", "mpeg4", {"g": "25"}),
    ],
)
def test_seeking_gives_the_frames_of_decoding_all(tmp_path, monkeypatch, name, codec, options):
    path = moving(tmp_path / name, 600, codec=codec, **options)
    found = survey(path)
    wanted = [7, 300, 301, 310, 599]
    sought = decode.decode_frames(path, found, lambda _: wanted, TO)
    monkeypatch.setattr(decode, "_decode_from_keys", lambda *_: None)
    whole = decode.decode_frames(path, found, lambda _: wanted, TO)
    assert (sought.count, sought.source_size, sought.times) == (600, (48, 64), whole.times)
    for index in wanted:
        np.testing.assert_array_equal(sought.images[index], whole.images[index])
    assert all(len({i.tobytes() for i in each.images.values()}) == 5 for each in (sought, whole))


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv"])
def test_a_long_file_is_not_decoded_whole(tmp_path, monkeypatch, name):
    path = moving(tmp_path / name, 600, g="50")
    monkeypatch.setattr(decode, "_decode_all", None)
    how = Preprocessing(sampling=Sampling.parse("dense:4@30"))
    clip = read_clip(path, frames=8, height=32, width=32, preprocessing=how)
    assert clip.indices == (285, 289, 293, 297, 301, 305, 309, 313)
    assert clip.times == pytest.approx([index / 30 for index in clip.indices], abs=1e-3)


def test_frames_all_over_a_short_file_are_not_sought(tmp_path, monkeypatch):
    path = moving(tmp_path / "a.mp4", 100, g="10")
    monkeypatch.setattr(decode, "_frames_from", None)
    clip = read_clip(path, frames=8, height=32, width=32, preprocessing=Preprocessing())
    assert clip.source_frames == 100


def test_a_cut_file_with_its_index_is_read_to_its_end(tmp_path):
    whole = moving(tmp_path / "a.mp4", 600, g="50", movflags="faststart")
    with (
        av.open(str(whole)) as container,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as out,
    ):
        stream = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(container.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = (tmp_path / "fast.mp4").read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 2 // 3])
    how = Preprocessing(sampling=Sampling.parse("dense:4@30"))
    clip = read_clip(cut, frames=8, height=32, width=32, preprocessing=how)
    assert clip.source_frames < 450
    assert "perhaps cut short" in clip.note


def test_a_damaged_last_frame_does_not_cost_the_frames_that_are_shown_after_it(tmp_path):
    """With several threads, PyAV stops at an error at the end, and does not tell it."""
    path = moving(tmp_path / "a.mp4", 30, bf="3")
    with av.open(str(path)) as container:
        entry = list(container.streams.video[0].index_entries)[-1]
    data = bytearray(path.read_bytes())
    data[entry.pos : entry.pos + entry.size] = bytes(entry.size)
    path.write_bytes(data)
    found = decode.decode_frames(path, survey(path), lambda count: range(count), TO)
    assert found.faults
    assert sorted(found.images) == list(range(29))


@pytest.mark.slow
def test_eight_dense_frames_of_ten_minutes_cost_far_less_than_decoding_all(tmp_path):
    path = moving(tmp_path / "long.mp4", 18_000, g="250", preset="ultrafast", crf="35")
    how = Preprocessing(sampling=Sampling.parse("dense:32@30"))

    def seconds(work):
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    def read():
        assert read_clip(path, frames=8, height=224, width=224, preprocessing=how).times[0] > 290

    whole = seconds(lambda: decode._decode_all(path, set(), TO, "AUTO"))
    # Frames this small decode so fast that opening the file counts. The ratio of 1/20 is that of
    # larger frames; a busy machine needs room.
    assert min(seconds(read) for _ in range(3)) < whole / 8
