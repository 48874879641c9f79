"""Images and arrays are clips too: bit-equal to the video that holds the same frames."""

import struct
import zlib
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from exporter.errors import VideoError
from exporter.inputs.clips import gather_calibration
from exporter.inputs.frames import clips_in
from exporter.inputs.video import read_clip
from exporter.report.png import png
from model.config import FastTimeSformerConfig
from model.preprocessing import Preprocessing
from model.sampling import Sampling, Views

HOW = Preprocessing(views=Views(2, 3), sampling=Sampling.parse("dense:2"))


def pictures(count: int = 12) -> list[np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    return [np.roll(noise, 5 * index, 1) for index in range(count)]


def read(source, how=HOW, frames=4):
    return read_clip(source, frames=frames, height=32, width=32, preprocessing=how)


def folder_of(path: Path, images, first: int = 1, digits: int = 5) -> Path:
    path.mkdir()
    for number, image in enumerate(images, first):
        (path / f"img_{number:0{digits}}.png").write_bytes(png(image))
    return path


def test_a_folder_a_list_and_an_array_equal_the_lossless_video(tmp_path, write_clip):
    video = read(write_clip(tmp_path / "clip.mkv", pictures()))
    folder = folder_of(tmp_path / "frames", pictures())
    listed = sorted(folder.iterdir())
    assert video.array.shape == (6, 4, 3, 32, 32)
    for source in (folder, listed, np.stack(pictures())):
        clip = read(source)
        np.testing.assert_array_equal(clip.array, video.array)
        assert (clip.indices, clip.source_frames) == (video.indices, 12)
        assert clip.source_size == (40, 64)


def test_a_folder_of_jpegs_equals_the_video_of_the_same_jpegs(tmp_path, write_clip):
    video = write_clip(tmp_path / "clip.mkv", pictures())
    (tmp_path / "frames").mkdir()
    pattern = str(tmp_path / "frames" / "img_%05d.jpg")
    with av.open(str(video)) as given, av.open(str(tmp_path / "jpegs.mkv"), "w") as out:
        stream = cast("VideoStream", out.add_stream("mjpeg", rate=25))
        stream.width, stream.height, stream.pix_fmt = 64, 40, "yuvj420p"
        number = 0
        for frame in given.decode(video=0):
            for packet in stream.encode(frame.reformat(format="yuvj420p")):
                number += 1
                Path(pattern % number).write_bytes(bytes(packet))
                out.mux(packet)
    clip = read(tmp_path / "frames")
    assert clip.source_frames == 12
    np.testing.assert_array_equal(clip.array, read(tmp_path / "jpegs.mkv").array)


def test_numbers_without_zeros_are_in_the_order_of_the_numbers(tmp_path):
    folder = folder_of(tmp_path / "frames", pictures(), digits=1)
    np.testing.assert_array_equal(read(folder).array, read(np.stack(pictures())).array)


def test_a_missing_frame_is_noted(tmp_path):
    folder = folder_of(tmp_path / "frames", pictures())
    assert read(folder).note == ""
    (folder / "img_00005.png").unlink()
    assert "the frame after number 4 is missing" in read(folder).note


def test_frames_without_a_rate_are_taken_to_have_that_of_the_sampling(tmp_path):
    how = Preprocessing(sampling=Sampling.parse("dense:2@10:start"))
    clip = read(folder_of(tmp_path / "frames", pictures()), how)
    assert clip.indices == (0, 2, 4, 6)
    assert clip.times == pytest.approx((0, 0.2, 0.4, 0.6))


def test_a_gray_array_is_read_as_colours():
    gray = np.stack(pictures())[..., :1]
    np.testing.assert_array_equal(read(gray).array, read(np.repeat(gray, 3, -1)).array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((4, 3, 8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_another_array_is_refused(array):
    with pytest.raises(VideoError, match=r"expected uint8 pixels \(N, H, W, 3\)"):
        read(array)


def test_hidden_files_of_any_system_are_no_frames(tmp_path):
    folder = folder_of(tmp_path / "frames", pictures())
    expected = read(folder).array
    for name in (".DS_Store", "._img_00001.png", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"no image")
    np.testing.assert_array_equal(read(folder).array, expected)


def test_a_folder_of_clips_holds_files_and_folders_of_frames(tmp_path):
    (tmp_path / "b").mkdir()
    folder_of(tmp_path / "b" / "frames", pictures())
    for name in ("b/clip.mp4", "a.mp4", ".hidden/clip.mp4", "b/.DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in clips_in(tmp_path)]
    assert found == ["a.mp4", "b/clip.mp4", "b/frames"]
    assert clips_in(tmp_path / "b" / "frames") == [tmp_path / "b" / "frames"]
    assert clips_in(tmp_path / "a.mp4") == [tmp_path / "a.mp4"]


def test_folders_of_frames_calibrate_as_clips(tmp_path):
    folder = folder_of(tmp_path / "frames", pictures())
    config = FastTimeSformerConfig(3, 3, 32, 32, 2)
    for path in (folder, tmp_path):
        inputs = gather_calibration((path,), config, Preprocessing())
        assert inputs.names == ("frames",)
        one = read(folder, Preprocessing(), frames=3).array
        np.testing.assert_array_equal(inputs.arrays["video"], one)


def test_frames_of_different_sizes_are_noted(tmp_path):
    folder = folder_of(tmp_path / "frames", pictures())
    (folder / "img_00003.png").write_bytes(png(pictures()[2].swapaxes(0, 1)))
    clip = read(folder, Preprocessing(), frames=12)
    assert clip.note == "frames of different sizes (40x64, 64x40), each is resized"


# By the number of an EXIF orientation: what shows the stored rows and columns upright.
UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_image_of_a_camera_is_shown_upright(tmp_path, orientation):
    """FFmpeg gives EXIF as side data that PyAV has no name for."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    chunk = b"eXIf" + exif
    stored = png(pictures()[0])
    header = 8 + 25  # the signature, and the first chunk
    chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path = tmp_path / "image.png"
    path.write_bytes(stored[:header] + chunk + stored[header:])
    upright = UPRIGHT[orientation](pictures()[0])
    found = read([path], Preprocessing(), frames=1)
    expected = read(np.ascontiguousarray(upright)[np.newaxis], Preprocessing(), frames=1)
    assert found.source_size == upright.shape[:2]
    np.testing.assert_array_equal(found.array, expected.array)


def test_a_folder_with_other_files_and_an_empty_list_are_no_clips(tmp_path):
    folder = folder_of(tmp_path / "frames", pictures())
    (folder / "labels.txt").write_text("left")
    with pytest.raises(
        VideoError, match=r"got a directory with labels\.txt.*nothing but the frames"
    ):
        read(folder)
    with pytest.raises(VideoError, match="got no image"):
        read([])


def test_an_image_that_is_none_is_an_error(tmp_path):
    folder = folder_of(tmp_path / "frames", pictures())
    (folder / "img_00003.png").write_bytes(b"no image")
    with pytest.raises(VideoError, match="img_00003"):
        read(folder)


class TestViews:
    def test_three_crops_are_start_centre_and_end_of_the_longer_side(self):
        wide = np.zeros((2, 32, 96, 3), np.uint8)
        for place, level in enumerate((50, 100, 150)):
            wide[:, :, 32 * place : 32 * place + 32] = level
        for frames in (wide, wide.swapaxes(1, 2)):
            clip = read(frames, Preprocessing(views=Views(1, 3)), frames=2)
            levels = 255 * clip.array.mean(axis=(1, 2, 3, 4))
            assert levels == pytest.approx([50, 100, 150])

    def test_views_are_the_crops_of_each_clip_and_the_centre_is_the_single_view(self):
        frames = np.stack(pictures())
        views = read(frames).array
        assert len(views) == 6
        centre = read(frames, HOW.changed({"views": "2x1"})).array
        np.testing.assert_array_equal(views[[1, 4]], centre)

    def test_bgr_reverses_the_channels(self):
        frames = np.stack(pictures())
        turned = read(frames, HOW.changed({"channel_order": "bgr"})).array
        np.testing.assert_array_equal(turned, read(frames).array[:, :, ::-1])


class TestSpacing:
    def how(self, **entries):
        return Preprocessing(sampling=Sampling.parse("dense:2@25"), **entries)

    def test_another_spacing_than_in_training_is_warned_of_with_both_numbers(
        self, tmp_path, write_clip
    ):
        video = write_clip(tmp_path / "clip.mkv", pictures())
        assert read(video, self.how()).note == ""
        assert read(video, self.how(spacing=0.1)).note == ""  # 0.08 s is near enough
        note = read(video, self.how(spacing=0.5)).note
        assert "warning: frames are 0.08 s apart" in note
        assert "in training they were 0.5 s" in note

    def test_a_file_that_is_too_short_repeats_frames_and_says_so(self, tmp_path, write_clip):
        video = write_clip(tmp_path / "clip.mkv", pictures(4))
        note = read(video, self.how()).note
        said = "warning: frames are 0.04 s apart on average, the sampling "
        assert f"{said}dense:2@25:steps:centre:clamp says 0.08 s" in note
        assert "training" not in note
        assert "3 of 4 differ" in note
