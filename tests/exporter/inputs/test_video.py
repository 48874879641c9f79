import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterable
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import cast

import av
import numpy as np
import pytest
import torch
from av.logging import FATAL, get_level, set_level
from av.stream import Disposition
from av.video.stream import VideoStream

from exporter.errors import UsageError, VideoError
from exporter.inputs.resize import Frame, fit
from exporter.inputs.sampling import clip_indices
from exporter.inputs.survey import Survey
from exporter.inputs.video import BT601_LUMA, Clip, as_input, read_clip
from model.preprocessing import Preprocessing
from model.sampling import Sampling

PLAIN = Preprocessing()
STEP = 8  # gray levels between the frames of a `counted` clip: the level of a frame is its index


def encode(
    path: Path,
    images: Iterable[np.ndarray],
    codec: str = "ffv1",
    pix_fmt: str = "bgr0",
    rotation: tuple[float, bool] | None = None,
    faststart: bool = False,
    sar: Fraction | None = None,
) -> Path:
    """Write RGB images `(H, W, 3)` uint8 as a clip.

    The default codec is lossless. The suffix of the file name selects the container.
    """
    images = iter(images)
    first = next(images)
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=25))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pix_fmt
        stream.bit_rate = 4_000_000  # plenty: a frame must show its own gray level
        if sar:
            stream.codec_context.sample_aspect_ratio = sar
        if rotation:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        for image in (first, *images):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def counted(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    return [np.full((height, width, 3), 8 + STEP * i, np.uint8) for i in range(count)]


def indices_shown(clip: Clip) -> list[int]:
    """Return the frame indices of a `counted` clip, decoded from the gray levels."""
    levels = 255 * clip.array[0].mean(axis=(1, 2, 3))
    return np.rint((levels - 8) / STEP).astype(int).tolist()


def read(path: Path, frames: int = 4, size: tuple[int, int] = (32, 32), **options) -> Clip:
    options = {"preprocessing": PLAIN, **options}
    return read_clip(path, frames=frames, height=size[0], width=size[1], **options)


def error(path: Path, **options) -> str:
    with pytest.raises(VideoError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def quadrants(height: int, width: int) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = 250, 20, 20
    image[: height // 2, width // 2 :] = 20, 250, 20
    image[height // 2 :, : width // 2] = 20, 20, 250
    image[height // 2 :, width // 2 :] = 240, 240, 240
    return image


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> Path:
    """A clip of 30 frames whose index is at the front, so that a truncated file can be read."""
    path = tmp_path_factory.mktemp("clips") / "counted.mp4"
    return encode(path, counted(30), codec="mpeg4", pix_fmt="yuv420p", faststart=True)


# --- real clips -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "size", "indices", "note"),
    [
        ("bikes", 250, (272, 640), (25, 75, 125, 175, 225), ""),
        ("bigbuckbunny", 132, (720, 1280), (13, 39, 66, 92, 118), ""),
        (
            "carphone",
            120,
            (144, 176),
            (12, 36, 60, 84, 108),
            "pixels have the shape 128:117, frames stretched",
        ),
    ],
)
def test_a_real_clip_gives_its_sampled_frames_in_the_target_size(
    real_clips, name, count, size, indices, note
):
    clip = read(real_clips[name], frames=5, size=(112, 112))
    assert clip.array.shape == (1, 5, 3, 112, 112)
    assert clip.array.dtype == np.float32
    assert clip.array.flags.c_contiguous
    assert clip.array.min() >= 0
    assert clip.array.max() <= 1 + 1e-6
    assert clip.array.std() > 0.1
    assert all(np.abs(a - b).max() > 0.05 for a, b in pairwise(clip.array[0]))
    assert (clip.source_frames, clip.source_size, clip.indices) == (count, size, indices)
    assert clip.note == note
    assert clip.summary == (
        f"frames {', '.join(map(str, indices))} of {count}, "
        f"{size[0]}x{size[1]} resized and cropped to 112x112" + (f"; {note}" if note else "")
    )


# --- selection of frames --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 100, 101, 100_003])
@pytest.mark.parametrize("frames", [1, 2, 5, 8, 96])
def test_centres_lie_in_the_middle_of_equal_segments(count, frames):
    (centres,) = clip_indices(Sampling(), count, frames)
    assert centres == tuple(int((i + 0.5) * count / frames + 1e-9) for i in range(frames))
    assert list(centres) == sorted(centres)
    assert 0 <= centres[0] <= centres[-1] < count


@pytest.mark.parametrize("frames", [1, 3, 5, 8, 30])
def test_the_frames_taken_are_the_ones_in_indices(mp4, frames):
    clip = read(mp4, frames=frames)
    assert (clip.indices,) == clip_indices(Sampling(), 30, frames)
    assert indices_shown(clip) == list(clip.indices)
    assert clip.note == ""


def test_a_path_may_be_a_text(mp4):
    assert (read(str(mp4)).array == read(mp4).array).all()


@pytest.mark.parametrize(("count", "indices"), [(1, [0] * 5), (2, [0, 0, 1, 1, 1])])
def test_a_short_clip_repeats_frames_and_notes_it(tmp_path, count, indices):
    clip = read(encode(tmp_path / "short.mkv", counted(count)), frames=5)
    assert indices_shown(clip) == list(clip.indices) == indices
    assert f"{count} of 5 frames" in clip.note
    assert "repeat" in clip.note
    assert clip.note in clip.summary


def test_a_wrong_frame_count_in_the_header_is_ignored_and_noted(tmp_path):
    path = encode(tmp_path / "liar.avi", counted(12), codec="mpeg4", pix_fmt="yuv420p")
    data = bytearray(path.read_bytes())
    length = data.index(b"strh") + 8 + 32  # the stream header's dwLength
    data[length : length + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 1000
    clip = read(path, frames=4)
    assert clip.source_frames == 12
    assert indices_shown(clip) == [1, 4, 7, 10]
    assert "its header says 1000 frames, 12 are there: perhaps cut short" in clip.note


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("clip.ts", "mpeg2video", "yuv420p"),
        ("clip.mjpeg", "mjpeg", "yuvj420p"),
        ("clip.mkv", "mpeg4", "yuv420p"),
    ],
)
def test_a_container_without_a_frame_count_is_sampled_correctly(tmp_path, name, codec, pix_fmt):
    path = encode(tmp_path / name, counted(20), codec=codec, pix_fmt=pix_fmt)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    clip = read(path, frames=5)
    assert indices_shown(clip) == [2, 6, 10, 14, 18]
    assert clip.note == ""


@pytest.mark.parametrize("name", ["clip.h264", "clip.ts", "clip.mkv"])
def test_the_same_stream_in_another_container_gives_the_same_clip(real_clips, tmp_path, name):
    path = tmp_path / name
    with av.open(str(real_clips["carphone"])) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    clip, original = read(path), read(real_clips["carphone"])
    assert clip.indices == original.indices
    np.testing.assert_array_equal(clip.array, original.array)


def test_packets_that_are_not_frames_do_not_shift_the_indices(tmp_path, monkeypatch):
    path = encode(tmp_path / "clip.mkv", counted(20))
    monkeypatch.setattr("exporter.inputs.video.survey", lambda _: Survey(35, "", ""))
    clip = read(path, frames=5)
    assert clip.source_frames == 20
    assert indices_shown(clip) == [2, 6, 10, 14, 18]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads VmHWM")
def test_memory_does_not_grow_with_the_length_of_the_clip(tmp_path):
    count, height, width = 600, 480, 640
    picture = noise(8, 8).repeat(height // 8, axis=0).repeat(width // 8, axis=1)
    path = tmp_path / "long.mp4"
    encode(path, (np.roll(picture, i, 1) for i in range(count)), codec="mpeg4", pix_fmt="yuv420p")
    program = f"""
import re
from pathlib import Path
import av, numpy
from exporter.inputs.video import read_clip
from model.preprocessing import Preprocessing
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
clip = read_clip(Path({str(path)!r}), frames=8, height=64, width=64, preprocessing=Preprocessing())
print(clip.source_frames, peak() - before)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    frames, grown = map(int, done.stdout.split())
    assert frames == count
    assert grown < 120, f"{grown} MiB for a clip of {count * height * width * 3 >> 20} MiB in RGB"


# --- pixels ---------------------------------------------------------------------------------------


def reference(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize with torch, then crop: `(3, h, w)`."""
    rows, columns = image.shape[:2]
    scale = max(height / rows, width / columns)
    size = max(height, int(rows * scale + 0.5)), max(width, int(columns * scale + 0.5))
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    options = {"mode": "bilinear", "align_corners": False, "antialias": True}
    resized = torch.nn.functional.interpolate(pixels, size, **options)[0].numpy()
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[:, top : top + height, left : left + width]


@pytest.mark.parametrize("source", [(33, 17), (64, 96), (96, 64), (7, 301), (1, 1), (240, 426)])
@pytest.mark.parametrize("target", [(32, 32), (16, 48), (96, 160), (7, 5)])
def test_the_resize_equals_the_antialiased_resize_of_torch(source, target):
    image = noise(*source)
    found = fit(image, Frame(*target))
    assert found.shape == (3, *target)
    assert found.dtype == np.float32
    assert np.abs(found - reference(image, *target)).max() < 0.01  # of 255


@pytest.mark.parametrize("source", [(64, 96), (96, 64), (272, 640), (33, 33), (20, 301)])
@pytest.mark.parametrize("short_side", [32, 36, 57, 130])
def test_short_side_sets_the_size_before_the_crop(source, short_side):
    """The longer side is rounded down, as in torchvision."""
    image = noise(*source)
    size = [side * short_side // min(source) for side in source]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    options = {"mode": "bilinear", "align_corners": False, "antialias": True}
    resized = torch.nn.functional.interpolate(pixels, size, **options)[0].numpy()
    top, left = (size[0] - 32) // 2, (size[1] - 24) // 2
    expected = resized[:, top : top + 32, left : left + 24]
    found = fit(image, Frame(32, 24, short_side))
    assert found.shape == (3, 32, 24)
    assert np.abs(found - expected).max() < 0.01  # of 255


@pytest.mark.parametrize("short_side", [1, 23, 31])
def test_a_short_side_below_the_target_is_raised_to_cover_it(short_side):
    image = noise(48, 64)
    np.testing.assert_array_equal(fit(image, Frame(32, 32, short_side)), fit(image, Frame(32, 32)))


def test_the_short_side_comes_from_the_preprocessing(tmp_path):
    image = noise(48, 64)
    path = encode(tmp_path / "clip.mkv", [image])
    plain = Preprocessing(short_side=40)
    found = read(path, frames=1, preprocessing=plain).array[0, 0]
    np.testing.assert_allclose(found, fit(image, Frame(32, 32, 40)) / 255, atol=1e-6)
    assert np.abs(found - read(path, frames=1).array[0, 0]).max() > 0.1


@pytest.mark.parametrize("target", [(32, 32), (30, 30), (31, 17)])
def test_detail_finer_than_the_target_is_averaged(target):
    y, x = np.mgrid[:128, :128]
    for pattern in ((y + x) % 2, x % 2, y % 2):
        image = np.repeat(255 * pattern[..., np.newaxis], 3, axis=2).astype(np.uint8)
        found = fit(image, Frame(*target))[:, 1:-1, 1:-1]
        assert np.abs(found - 127.5).max() < 8


def test_a_frame_of_the_target_size_is_unchanged():
    image = noise(24, 40)
    np.testing.assert_array_equal(fit(image, Frame(24, 40)), image.transpose(2, 0, 1))


def test_the_crop_is_central_and_keeps_the_aspect_ratio(tmp_path):
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = 200  # the middle third: a square target must show nothing else
    clip = read(encode(tmp_path / "wide.mkv", [image]), frames=1, size=(40, 40))
    np.testing.assert_allclose(clip.array, 200 / 255, atol=1e-6)
    tall = encode(tmp_path / "tall.mkv", [image.swapaxes(0, 1)])
    np.testing.assert_allclose(read(tall, frames=1, size=(40, 40)).array, 200 / 255, atol=1e-6)


@pytest.mark.parametrize("source", [(17, 33), (33, 17), (48, 64), (2, 2)])
@pytest.mark.parametrize("target", [(32, 32), (96, 160), (160, 96), (8, 8)])
def test_any_size_is_resized_to_any_size(tmp_path, source, target):
    image = noise(*source)
    clip = read(encode(tmp_path / "clip.mkv", [image]), frames=2, size=target)
    assert clip.array.shape == (1, 2, 3, *target)
    assert clip.source_size == source
    np.testing.assert_allclose(clip.array[0, 1], reference(image, *target) / 255, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "gray"),
    [
        ("clip.mkv", "ffv1", "gray10le", True),
        ("clip.mkv", "ffv1", "gray", True),
        ("clip.mkv", "ffv1", "yuv420p10le", False),
        ("clip.mkv", "ffv1", "yuv444p16le", False),
        ("clip.mkv", "ffv1", "bgra", False),
        ("clip.mov", "png", "rgba", False),
        ("clip.mov", "png", "rgb48be", False),
        ("clip.avi", "mjpeg", "yuvj420p", False),
        ("clip.gif", "gif", "rgb8", False),
        ("clip.mp4", "mpeg4", "yuv420p", False),
    ],
)
def test_pixel_formats_of_odd_sizes_become_rgb(tmp_path, name, codec, pix_fmt, gray):
    color = (180, 180, 180) if gray else (219, 109, 85)  # near one of the 256 colours of rgb8
    image = np.broadcast_to(np.array(color, np.uint8), (17, 33, 3)).copy()
    clip = read(encode(tmp_path / name, [image] * 3, codec=codec, pix_fmt=pix_fmt), frames=3)
    assert clip.source_size == (17, 33)
    found = 255 * clip.array[0].mean(axis=(0, 2, 3))
    np.testing.assert_allclose(found, color, atol=4)
    assert clip.array.std(axis=(3, 4)).max() < 8 / 255  # the palette of .gif dithers


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_the_display_matrix_turns_a_clip_upright(tmp_path, degrees, mirrored):
    image = quadrants(48, 64)
    path = encode(
        tmp_path / "phone.mov", [image], codec="png", pix_fmt="rgb24", rotation=(degrees, mirrored)
    )
    expected = np.rot90(image, degrees // 90)  # counter-clockwise, as the matrix is defined
    expected = np.fliplr(expected) if mirrored else expected
    clip = read(path, frames=1, size=expected.shape[:2])
    assert clip.source_size == expected.shape[:2]
    np.testing.assert_allclose(clip.array[0, 0], expected.transpose(2, 0, 1) / 255, atol=1e-6)


def test_normalisation_is_per_channel(tmp_path):
    image = np.broadcast_to(np.array([51, 102, 204], np.uint8), (32, 32, 3)).copy()
    path = encode(tmp_path / "clip.mkv", [image])
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    clip = read(path, frames=1, preprocessing=preprocessing)
    np.testing.assert_allclose(clip.array[0, 0, :, 5, 5], [0.2, 0.8, 0.25], atol=1e-6)
    assert clip.array.dtype == np.float32


def test_a_model_of_one_channel_gets_luma(tmp_path):
    path = encode(tmp_path / "clip.mkv", [quadrants(32, 32)])
    gray = Preprocessing(mean=(0.5,), std=(0.25,))
    clip = read(path, frames=2, channels=1, preprocessing=gray)
    assert clip.array.shape == (1, 2, 1, 32, 32)
    red = (np.dot([250, 20, 20], BT601_LUMA) / 255 - 0.5) / 0.25
    assert clip.array[0, 0, 0, 4, 4] == pytest.approx(red, abs=1e-4)
    assert clip.array[0, 0, 0, 28, 28] == pytest.approx((240 / 255 - 0.5) / 0.25, abs=1e-4)


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_other_channel_counts_are_refused(mp4, channels):
    preprocessing = Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels)
    with pytest.raises(VideoError, match=f"1 or 3 channels: got a model of {channels}"):
        read(mp4, channels=channels, preprocessing=preprocessing)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_preprocessing_with_another_channel_count_is_refused(mp4, channels):
    other = 4 - channels
    preprocessing = Preprocessing(mean=(0.5,) * other, std=(1.0,) * other)
    with pytest.raises(VideoError, match=f"got {other}, expected {channels}"):
        read(mp4, channels=channels, preprocessing=preprocessing)


# --- damaged files --------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.5, 0.7, 0.95])
def test_a_truncated_clip_gives_its_frames_and_notes_the_damage(tmp_path, mp4, kept):
    data = mp4.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(kept * len(data))])
    clip = read(path, frames=4)
    assert 1 <= clip.source_frames <= 30
    assert (clip.indices,) == clip_indices(Sampling(), clip.source_frames, 4)
    assert indices_shown(clip)[:-1] == list(clip.indices)[:-1]  # the last may be half a frame
    assert "its header says 30 frames" in clip.note or "damaged" in clip.note


def test_a_clip_truncated_in_its_header_is_an_error(tmp_path, mp4):
    path = tmp_path / "cut.mp4"
    path.write_bytes(mp4.read_bytes()[:200])
    assert "video" in error(path)


def test_an_mp4_without_its_index_is_an_error_with_the_text_of_ffmpeg(tmp_path, real_clips):
    data = real_clips["carphone"].read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) // 2])
    message = error(path)
    assert "moov atom not found" in message
    assert "check that the file is complete" in message


def test_a_truncated_clip_without_a_frame_count_is_noted_by_its_duration(tmp_path):
    path = encode(tmp_path / "cut.mkv", (noise(16, 16, i) for i in range(100)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 4])
    clip = read(path, frames=4)
    assert 10 < clip.source_frames < 40
    assert "its header says 4.0 s" in clip.note


def test_damage_in_the_middle_is_noted_and_decodes_the_same_each_time(tmp_path, real_clips):
    data = bytearray(real_clips["carphone"].read_bytes())
    rng = random.Random(3)
    for _ in range(200):
        data[rng.randrange(20_000, len(data) - 20_000)] = rng.randrange(256)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    clips = [read(path) for _ in range(3)]
    assert "damaged" in clips[0].note
    for clip in clips[1:]:
        np.testing.assert_array_equal(clip.array, clips[0].array)
        assert (clip.indices, clip.note) == (clips[0].indices, clips[0].note)


def test_a_stream_that_ends_in_a_read_error_gives_the_frames_before_it(tmp_path):
    path = encode(tmp_path / "clip.y4m", counted(30), codec="wrapped_avframe", pix_fmt="yuv420p")
    frames = path.read_bytes().split(b"FRAME")
    path.write_bytes(b"FRAME".join(frames[:21]) + b"BREAK" + b"FRAME".join(frames[21:]))
    clip = read(path, frames=4)
    assert clip.source_frames == 20
    assert indices_shown(clip) == [2, 7, 12, 17]
    assert "damaged (1 errors, first: Invalid data found" in clip.note


# --- whole files that look cut short, and files that say more than their frames ------------------


def remux(source: Path, path: Path, *, shift: float) -> Path:
    """Copy the packets of a clip, moved by `shift` seconds, without decoding them."""
    with av.open(str(source)) as given, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                ticks = round(shift / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = stream
                target.mux(packet)
    return path


def test_a_trimmed_copy_that_hides_frames_is_whole(tmp_path, real_clips):
    """A copy that starts between key frames keeps them in the file, with times before 0."""
    path = remux(real_clips["carphone"], tmp_path / "cut.mp4", shift=-1.0)
    with av.open(str(path)) as container:
        hidden = sum(packet.is_discard for packet in container.demux(video=0))
        assert container.streams.video[0].frames == 120
    assert hidden > 10
    clip = read(path, frames=4)
    assert clip.source_frames == 120 - hidden
    assert "cut short" not in clip.note
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="gray")
    with av.open(str(real_clips["carphone"])) as container:
        images = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(first, images[hidden])


def test_an_avi_with_empty_frames_is_whole_and_has_a_variable_rate(tmp_path):
    images = counted(20)
    path = encode_at(tmp_path / "skips.avi", images, [i + 5 * (i > 9) for i in range(20)])
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 25
    clip = read(path, frames=4)
    assert clip.source_frames == 20
    assert clip.note == (
        "variable frame rate (40 to 240 ms between frames): sampled by frame, not by time"
    )


def test_an_even_rate_whose_times_are_rounded_is_no_variable_rate(tmp_path):
    path = encode_at(tmp_path / "ntsc.mkv", counted(20), range(20), rate=Fraction(30000, 1001))
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert {b - a for a, b in pairwise(sorted(times))} == {33, 34}
    assert read(path).note == ""


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_sound_that_is_longer_than_the_picture_leaves_the_clip_whole(tmp_path, suffix):
    path = tmp_path / f"sound{suffix}"
    with av.open(str(path), "w") as container:
        picture = cast("VideoStream", container.add_stream("mpeg4", rate=25))
        picture.height, picture.width, picture.pix_fmt = 48, 64, "yuv420p"
        sound = container.add_stream("aac", rate=44100, layout="mono")
        for image in counted(25):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(picture.encode())
        for i in range(220):  # 5 s, of which the picture is 1
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate, frame.pts = 44100, 1024 * i
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    clip = read(path, frames=4)
    assert clip.source_frames == 25
    assert clip.note == ""


@pytest.mark.parametrize("name", ["latin1.avi", "latin1.mkv"])
def test_a_title_that_is_not_utf_8_does_not_matter(tmp_path, name):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Caf\x7f"
        stream = cast("VideoStream", container.add_stream("mpeg4", rate=25))
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for image in counted(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert b"Caf\x7f" in content
    path.write_bytes(content.replace(b"Caf\x7f", b"Caf\xe9"))
    with pytest.raises(UnicodeDecodeError), av.open(str(path)):
        pass
    assert read(path).source_frames == 5


def encode_at(path: Path, images, times, rate=Fraction(25)) -> Path:
    """Write a clip whose frames have these times, in frames of the nominal rate."""
    with av.open(str(path), "w") as container:
        stream = cast("VideoStream", container.add_stream("mpeg4", rate=rate))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("sar", [Fraction(2), Fraction(1, 2)])
def test_pixels_that_are_not_square_are_stretched_and_said(tmp_path, sar):
    """A disc, squeezed by the shape of its pixels, is round in the input of the model."""
    rows, columns = (64, 32) if sar > 1 else (32, 64)
    y, x = np.mgrid[:rows, :columns]
    down, across = (y + 0.5) / rows - 0.5, (x + 0.5) / columns - 0.5
    disc = np.where((down**2 + across**2 < 0.16)[..., np.newaxis], 230, 20)
    image = np.broadcast_to(disc, (rows, columns, 3)).astype(np.uint8)
    path = encode(tmp_path / "disc.mp4", [image], codec="mpeg4", pix_fmt="yuv420p", sar=sar)
    clip = read(path, frames=1, size=(64, 64))
    assert clip.note == (
        f"pixels have the shape {sar.numerator}:{sar.denominator}, frames stretched"
    )
    bright = clip.array[0, 0, 0] > 0.5
    assert bright.any(axis=0).sum() == pytest.approx(0.8 * 64, abs=2)
    assert bright.any(axis=1).sum() == pytest.approx(0.8 * 64, abs=2)
    published = read(path, frames=1, size=(32, 32), preprocessing=Preprocessing(short_side=32))
    assert published.note.endswith("but the model's resize takes them as square")
    assert (published.array[0, 0, 0] > 0.5).mean() > 0.7  # squeezed, it fills the centre


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("https://example.com/clip.mp4", "a URL"),
        ("rtsp://camera/stream", "a URL"),
        ("/dev/video99", "a device that is not there"),
        ("0", "a device that is not there"),
    ],
)
def test_a_url_or_a_device_is_called_what_it_is(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError) as caught:
        read(Path(name))
    message = str(caught.value)
    assert f"{name} cannot be read: clips are files: got {kind}" in message
    assert "No such file" not in message


def test_an_animated_webp_says_what_to_do(tmp_path):
    """Its header alone: flags with the bit of an animation, and a canvas of 8 x 8 pixels."""
    chunks = b"WEBPVP8X" + (10).to_bytes(4, "little") + bytes([2, 0, 0, 0, 7, 0, 0, 7, 0, 0])
    chunks += b"ANIM" + (6).to_bytes(4, "little") + bytes(6)
    path = tmp_path / "moving.webp"
    path.write_bytes(b"RIFF" + len(chunks).to_bytes(4, "little") + chunks)
    message = error(path)
    assert "an animated WebP, which this FFmpeg does not decode; save it as GIF or MP4" in message


def test_a_frame_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    """A picture of one colour claims 30000 x 30000 pixels in 130 kB."""
    rows = zlib.compress(bytes((30_000 // 8 + 1) * 30_000), 9)

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return len(content).to_bytes(4, "big") + whole + zlib.crc32(whole).to_bytes(4, "big")

    size = (30_000).to_bytes(4, "big") * 2
    header = chunk(b"IHDR", size + bytes([1, 0, 0, 0, 0]))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    message = error(path)
    assert "frames that are too large" in message or "no frame that decodes" in message


# --- files that are not clips ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", "notes.mp4", "notes", "notes.mkv", "notes.gif"])
def test_a_text_file_is_refused_whatever_its_suffix(tmp_path, name, capfd):
    path = tmp_path / name
    path.write_text("This is not a video, it only says that it is one.\n" * 40)
    assert f"{path} is not a video: got" in error(path)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_file_of_random_bytes_is_refused(tmp_path):
    path = tmp_path / "noise.mp4"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert f"{path} is not a video" in error(path)


def test_a_missing_file_is_an_error(tmp_path):
    assert "No such file" in error(tmp_path / "absent.mp4")


def test_a_directory_is_refused(tmp_path):
    assert "got an empty directory, expected a video file" in error(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    assert "got an empty file" in error(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_does_not_block(tmp_path):
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    assert "got a pipe or device" in error(path)


def test_a_file_without_read_permission_is_an_error(tmp_path, mp4, monkeypatch):
    path = tmp_path / "locked.mp4"
    path.write_bytes(mp4.read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):  # root can read everything, so make `open` refuse

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    message = error(path)
    assert "got Permission denied" in message
    assert "check the path and its permissions" in message


def write_audio(path: Path, cover: np.ndarray | None = None) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        picture = None
        if cover is not None:
            picture = container.add_stream("mjpeg", rate=1)
            picture.height, picture.width = cover.shape[:2]
            picture.pix_fmt = "yuvj420p"
            picture.disposition = Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(cover)))
            container.mux(picture.encode())
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate, frame.pts = 44100, 1024 * i
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def test_a_file_with_sound_only_is_refused(tmp_path):
    assert "has no video stream: got only audio" in error(write_audio(tmp_path / "song.m4a"))


def test_a_file_that_is_torn_in_its_index_is_said_to_be_incomplete(tmp_path):
    path = encode(tmp_path / "torn.mp4", counted(30))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"hdlr")])
    assert "no video stream: got only data; check that the file is complete" in error(path)


def test_the_cover_picture_of_a_song_is_not_a_clip(tmp_path):
    path = write_audio(tmp_path / "song.mp4", cover=noise(32, 32))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert "has no video stream: got only audio" in error(path)


def test_a_codec_unknown_to_ffmpeg_is_an_error(tmp_path):
    path = encode(tmp_path / "unknown.mov", counted(2), codec="mjpeg", pix_fmt="yuvj420p")
    path.write_bytes(path.read_bytes().replace(b"jpeg", b"zzzz"))
    assert "cannot decode its codec" in error(path)


def test_a_stream_without_a_decodable_frame_is_an_error(tmp_path, mp4):
    data = bytearray(mp4.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path = tmp_path / "blank.mp4"
    path.write_bytes(data)
    message = error(path)
    assert "no frame that decodes" in message
    assert "re-encode" in message


def test_a_clip_that_decodes_differently_each_time_is_an_error(mp4, monkeypatch):
    from exporter.inputs import container

    lengths = iter(range(20, 30))

    def shrinking(stream, faults):
        yield from list(stream.container.demux(stream))[: next(lengths)]

    monkeypatch.setattr(container, "packets", shrinking)
    assert "decodes differently each time" in error(mp4)


def test_a_playlist_does_not_reach_the_network(tmp_path):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # the library's name for it
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_, **__):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        path = tmp_path / "list.m3u8"
        segment = f"#EXTINF:10,\nhttp://127.0.0.1:{server.server_port}/a.ts"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n{segment}\n#EXT-X-ENDLIST\n")
        message = error(path)
        server.shutdown()
        thread.join()
    assert f"{path} is not a video" in message
    assert asked == []


@pytest.mark.parametrize("name", ["http:clip.mp4", "concat:a|b.mp4", "sp ace é.mp4", "-i.mp4"])
def test_a_file_name_is_never_read_as_a_url_or_an_option(tmp_path, mp4, name, monkeypatch):
    (tmp_path / name).write_bytes(mp4.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert read(Path(name)).source_frames == read(tmp_path / name).source_frames == 30


# --- side effects ---------------------------------------------------------------------------------


def test_reading_leaves_the_log_level_of_ffmpeg_unchanged(tmp_path, mp4):
    before = get_level()
    try:
        for level in (None, FATAL):
            set_level(level)
            read(mp4)
            error(tmp_path / "absent.mp4")
            (tmp_path / "text.mp4").write_text("text")
            error(tmp_path / "text.mp4")
            assert get_level() == level
    finally:
        set_level(before)


def test_importing_video_and_synthetic_imports_neither_av_nor_torch():
    program = """
import sys
from types import ModuleType
package = sys.modules["exporter"] = ModuleType("exporter")
package.__path__ = ["exporter"]  # do not test what the package's own __init__ imports
import exporter.inputs.synthetic, exporter.inputs.video
print({"av", "torch"} & {*sys.modules})
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_importing_the_package_does_not_import_av():
    program = "import sys, exporter, exporter.inputs.video; print('av' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_pixels_for_a_model_that_contains_the_normalisation_are_rounded_to_the_nearest():
    pixels = np.array([1.4, 1.6, -0.2, 255.4], np.float32).reshape(4, 1, 1, 1) / 255
    found = as_input(pixels, Preprocessing(embedded=True))  # (..., c, h, w) -> (..., h, w, c)
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == [1, 2, 0, 255]


def test_a_gray_model_takes_the_luma_of_the_standard(tmp_path):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:], gray = (200, 100, 50), Preprocessing((0.0,), (1.0,))
    clip = read(encode(tmp_path / "clip.mkv", [image]), frames=1, channels=1, preprocessing=gray)
    luma = (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255
    np.testing.assert_allclose(clip.array, luma, atol=1e-4)


def test_bgr_turns_the_channels_and_not_the_frames(tmp_path):
    images = [np.full((32, 32, 3), (200, 100, level), np.uint8) for level in (10, 30)]
    how = Preprocessing(channel_order="bgr")
    clip = read(encode(tmp_path / "clip.mkv", images), frames=2, preprocessing=how)
    found = 255 * clip.array[0].mean((2, 3))
    np.testing.assert_allclose(found, [[10, 100, 200], [30, 100, 200]], atol=0.1)


def test_one_frame_too_few_is_noted(tmp_path):
    path = encode(tmp_path / "clip.mkv", counted(3))
    assert "shorter than asked (3 of 4 frames)" in read(path, frames=4).note
    assert read(path, frames=3).note == ""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"frames": 0}, "frames must be a whole number of at least 1: got 0"),
        ({"frames": "2"}, "frames must be a whole number of at least 1: got '2'"),
        ({"frames": 10**12}, "frames must be at most 1,024"),
        ({"height": -1}, "height must be a whole number"),
        ({"width": 1.5}, "width must be a whole number"),
        ({"channels": None}, "channels must be a whole number"),
        ({"preprocessing": None}, "preprocessing: got None, expected a Preprocessing"),
        ({"source": 3}, "clips: got 3, expected a path"),
    ],
)
def test_a_wrong_argument_is_refused(wrong, said):
    right = {"frames": 2, "height": 8, "width": 8, "preprocessing": PLAIN}
    source = {"source": np.zeros((4, 8, 8, 3), np.uint8)}
    with pytest.raises(UsageError, match=said):
        read_clip(**{**source, **right, **wrong})
