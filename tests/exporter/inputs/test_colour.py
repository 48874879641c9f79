"""The colours of a clip against the exact conversion, computed here in float64 from the planes."""

from contextvars import ContextVar
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.filter import Graph
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from exporter.errors import VideoError
from exporter.inputs import colour
from exporter.inputs.colour import hdr, pixel_aspect, upright_rgb
from exporter.inputs.video import read_clip
from model.preprocessing import Preprocessing

# By number of ITU-T H.273: the weights of red and blue in the luma; 2 is "not said", as BT.601.
MATRICES = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
LIMITED, FULL = 1, 2
# How many luma samples a chroma sample covers, as powers of 2: across, and down.
SHARED = {"yuv444p": (0, 0), "yuv422p": (1, 0), "yuv420p": (1, 1)}
# Rounding to whole levels is up to 0.5 off, and swscale multiplies with numbers of 16 bits.
WORST, MEAN = 0.515, 0.26


def interpolate(plane: np.ndarray, size: int, axis: int, step: int, centred: bool) -> np.ndarray:
    """Return the plane at every luma sample of an axis: linear, the edge repeated."""
    places = (np.arange(size) + 0.5) / step - 0.5 if centred else np.arange(size) / step
    places = places.clip(0, plane.shape[axis] - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, plane.shape[axis] - 1)
    share = np.expand_dims(places - low, 1 - axis)
    return plane.take(low, axis) * (1 - share) + plane.take(high, axis) * share


def exact_rgb(
    planes: list[np.ndarray], matrix: int, full: bool, *, left: bool, bits: int = 8
) -> np.ndarray:
    """Return `(H, W, 3)` in levels of 255, not rounded; chroma is at the left or in the centre."""
    luma, *chroma = (plane / 2 ** (bits - 8) for plane in planes)
    for axis, centred in ((0, True), (1, not left)):
        size = luma.shape[axis]
        step = round(size / chroma[0].shape[axis])
        if step > 1:
            chroma = [interpolate(plane, size, axis, step, centred) for plane in chroma]
    luma = luma / 255 if full else (luma - 16) / 219
    blueness, redness = ((plane - 128) / (255 if full else 224) for plane in chroma)
    red_weight, blue_weight = MATRICES[matrix]
    red = luma + 2 * (1 - red_weight) * redness
    blue = luma + 2 * (1 - blue_weight) * blueness
    green = (luma - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return (255 * np.stack([red, green, blue], axis=-1)).clip(0, 255)


def planes_of(frame: av.VideoFrame) -> list[np.ndarray]:
    return [
        np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width].astype(float)
        for plane in frame.planes
    ]


def coloured(name: str, matrix: int, range_: int, height: int = 48, width: int = 64):
    """Make a frame of random bytes: luma, and chroma that differs from sample to sample."""
    generator = np.random.default_rng(3)
    frame = av.VideoFrame(width, height, name)
    for plane in frame.planes:
        rows = generator.integers(0, 256, (plane.height, plane.line_size), np.uint8)
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = matrix, range_
    return frame


@pytest.mark.parametrize("range_", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", SHARED)
def test_a_frame_becomes_the_exact_rgb_of_its_matrix_and_range(name, matrix, range_):
    frame = coloured(name, matrix, range_)
    planes = planes_of(frame)
    exact = exact_rgb(planes, matrix, range_ == FULL, left=False)
    found, turned = upright_rgb(frame)
    assert np.abs(found - exact).max() <= WORST
    assert np.abs(found - exact).mean() <= MEAN
    assert not turned
    # Any other reading of the same bytes is far off: the bounds above tell them apart.
    other = exact_rgb(planes, 9 if matrix == 1 else 1, range_ == FULL, left=False)
    assert np.abs(found - other).mean() > 2
    other = exact_rgb(planes, matrix, range_ != FULL, left=False)
    assert np.abs(found - other).mean() > 2


@pytest.mark.parametrize("mark", ["tff", "bff"])
@pytest.mark.parametrize("range_", [LIMITED, FULL])
@pytest.mark.parametrize("height", [48, 50, 52])  # 50 has an odd number of chroma rows
@pytest.mark.parametrize("name", ["yuv420p", "yuv422p", "yuv420p10le"])
def test_an_interlaced_frame_is_one_picture(name, height, range_, mark):
    frame = coloured(name, 1, range_, height)
    graph = Graph()
    how = {"width": 64, "height": height, "format": frame.format, "time_base": Fraction(1, 25)}
    steps = graph.add_buffer(**how), graph.add("setfield", mark), graph.add("buffersink")
    graph.link_nodes(*steps).configure()
    graph.push(coloured(name, 1, range_, height))
    interlaced = cast("av.VideoFrame", graph.pull())
    assert interlaced.interlaced_frame
    np.testing.assert_array_equal(upright_rgb(interlaced)[0], upright_rgb(frame)[0])
    assert interlaced.interlaced_frame  # it is not changed under the caller


def test_a_frame_that_says_no_range_has_the_limited_range():
    frame = coloured("yuv420p", 2, 0)
    exact = exact_rgb(planes_of(frame), 2, full=False, left=False)
    assert np.abs(upright_rgb(frame)[0] - exact).max() <= WORST


@pytest.mark.parametrize("name", ["carphone", "bikes"])
def test_a_real_clip_has_the_exact_colours_at_every_pixel(real_clips, name):
    """H.264 takes chroma at the left of two pixels; a shifted chroma is far off."""
    with av.open(str(real_clips[name])) as container:
        frame = next(container.decode(video=0))
    planes = planes_of(frame)
    found = upright_rgb(frame)[0]
    difference = np.abs(found - exact_rgb(planes, 2, full=False, left=True))
    assert difference.max() <= WORST
    assert difference.mean() <= MEAN
    shifted = np.abs(found - exact_rgb(planes, 2, full=False, left=False))
    assert np.percentile(shifted, 99.9) > 2
    clip = read_clip(
        real_clips[name],
        frames=1,
        height=frame.height,
        width=frame.width,
        preprocessing=Preprocessing(short_side=frame.height),
    )
    assert clip.array.shape == (1, 1, 3, frame.height, frame.width)


@pytest.mark.parametrize(("matrix", "range_"), [(1, LIMITED), (6, FULL), (9, LIMITED)])
def test_a_file_keeps_its_matrix_and_range_up_to_the_input_of_the_model(tmp_path, matrix, range_):
    frame = coloured("yuv420p", matrix, range_)
    path = write(tmp_path / "clip.mkv", [frame], matrix=matrix, range_=range_)
    clip = read_clip(path, frames=1, height=48, width=64, preprocessing=Preprocessing())
    exact = exact_rgb(planes_of(frame), matrix, range_ == FULL, left=False)
    found = 255 * clip.array[0, 0].transpose(1, 2, 0)
    assert np.abs(found - exact).max() <= WORST
    assert clip.note == ""


def test_ten_bits_become_the_exact_rgb():
    generator = np.random.default_rng(5)
    frame = av.VideoFrame(64, 48, "yuv420p10le")
    planes = []
    for plane in frame.planes:
        rows = generator.integers(64, 940, (plane.height, plane.line_size // 2), np.uint16)
        plane.update(rows.astype("<u2").tobytes())
        planes.append(rows[:, : plane.width].astype(float))
    frame.colorspace, frame.color_range = 9, LIMITED
    exact = exact_rgb(planes, 9, full=False, left=False, bits=10)
    assert np.abs(upright_rgb(frame)[0] - exact).max() <= WORST


def test_the_reserved_matrix_is_read_as_not_said():
    expected = upright_rgb(coloured("yuv420p", 2, LIMITED))[0]
    np.testing.assert_array_equal(upright_rgb(coloured("yuv420p", 3, LIMITED))[0], expected)


def test_a_matrix_that_ffmpeg_does_not_convert_is_named(tmp_path):
    path = write(tmp_path / "clip.mkv", [coloured("yuv420p", 10, LIMITED)], matrix=10)
    what = r"clip\.mkv: .* cannot convert its colours to RGB: got yuv420p with the matrix 10 of ITU"
    with pytest.raises(VideoError, match=what):
        read_clip(path, frames=1, height=48, width=64, preprocessing=Preprocessing())


@pytest.mark.parametrize(("curve", "name"), [(16, "PQ"), (18, "HLG"), (1, ""), (2, "")])
def test_a_frame_of_an_hdr_curve_is_named(curve, name):
    frame = coloured("yuv420p", 9, LIMITED)
    frame.color_trc = curve
    assert hdr(frame) == name


def test_a_clip_of_hdr_says_that_values_are_taken_as_stored(tmp_path):
    path = write(tmp_path / "hdr.mkv", [coloured("yuv420p", 9, LIMITED)], matrix=9, curve=16)
    clip = read_clip(path, frames=1, height=48, width=64, preprocessing=Preprocessing())
    assert clip.note == "HDR (PQ): values are taken as stored, without tone mapping"


@pytest.mark.parametrize(
    ("stored", "turned", "expected"),
    [(None, False, 1), (Fraction(2), False, 2), (Fraction(2), True, Fraction(1, 2)), (0, True, 1)],
)
def test_the_shape_of_a_pixel_turns_with_its_frame(stored, turned, expected):
    assert pixel_aspect(stored, turned=turned) == expected


def write(path: Path, frames, *, matrix=2, range_=LIMITED, curve=2) -> Path:
    """Write frames without loss, with the colours that the stream says."""
    with av.open(str(path), "w") as container:
        stream = cast("VideoStream", container.add_stream("ffv1", rate=25))
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc = matrix, range_, curve
        for number, frame in enumerate(frames):
            frame.pts, frame.color_trc = number, curve
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("threads", ["AUTO", "NONE"])
def test_one_reformatter_converts_frames_of_every_kind_in_turn(monkeypatch, threads):
    monkeypatch.setattr(colour, "THREAD_TYPE", ContextVar("type", default=threads))
    kinds = [(name, matrix, range_) for name in SHARED for matrix in MATRICES for range_ in (1, 2)]
    frames = [coloured(*kind, *size) for kind in kinds for size in ((48, 64), (30, 46))]
    expected = [upright_rgb(frame)[0] for frame in frames]
    convert = VideoReformatter().reformat
    for frame, image in [*zip(frames, expected, strict=True)][::-1]:
        np.testing.assert_array_equal(upright_rgb(frame, convert)[0], image)


DEEP = ["gbrp9le", "gbrp10le", "gbrp12be", "gbrp14le", "gbrp16le", "gbrap12le", "gbrap16le"]
DEEP += ["rgb48le", "rgb48be", "bgr48le", "rgba64le", "bgra64be", "x2rgb10le"]
DEEP += ["gray9le", "gray10be", "gray12le", "gray16le", "ya16le"]


@pytest.mark.parametrize("name", DEEP)
def test_rgb_and_gray_of_many_bits_are_rounded_to_the_nearest_level(name):
    height, width = 6, 10  # narrower than a line of the planes
    frame = av.VideoFrame(width, height, name)
    bits, drawn = frame.format.components[0].bits, np.random.default_rng(0)
    levels = drawn.integers(0, 2**bits, (height, width, 4))
    levels[0, :2] = [[0], [2**bits - 1]]
    red, green, blue, alpha = np.moveaxis(levels, -1, 0)
    kind = ">u2" if name.endswith("be") else "<u2"
    if name.startswith(("gray", "ya")):
        levels[..., 1:3] = levels[..., :1]
        orders = [[red, alpha]] if name.startswith("ya") else [[red]]
    elif name.startswith("gbr"):
        orders = [[green], [blue], [red], [alpha]]
    elif name.startswith("x2"):
        kind, orders = "<u4", [[(red << 20) | (green << 10) | blue]]
    else:
        channels = [blue, green, red] if name.startswith("bgr") else [red, green, blue]
        orders = [channels + [alpha] * ("a" in name)]
    for plane, order in zip(frame.planes, orders, strict=False):
        packed = np.stack(order, -1).reshape(height, -1)
        rows = np.zeros((height, plane.line_size // np.dtype(kind).itemsize), kind)
        rows[:, : packed.shape[1]] = packed
        plane.update(rows.tobytes())
    image, _ = upright_rgb(frame)
    exact = 255 * levels[..., :3] / (2**bits - 1)
    assert np.abs(image - exact).max() <= 0.505  # x2rgb10 is spread over 16 bits first


@pytest.mark.parametrize("name", ["gbrpf32le", "gbrapf32be", "grayf32le"])
def test_floats_are_rounded_to_the_nearest_level(name):
    height, width = 6, 10
    frame = av.VideoFrame(width, height, name)
    values = np.random.default_rng(0).uniform(-0.1, 1.1, (4, height, width))
    for plane, channel in zip(frame.planes, values, strict=False):
        rows = np.zeros((height, plane.line_size // 4), ">f4" if name.endswith("be") else "<f4")
        rows[:, :width] = channel
        plane.update(rows.tobytes())
    image, _ = upright_rgb(frame)
    green, blue, red, _alpha = values if name.startswith("gbr") else values[[0, 0, 0, 0]]
    exact = 255 * np.stack([red, green, blue], -1).clip(0, 1)
    assert np.abs(image - exact).max() <= 0.501
