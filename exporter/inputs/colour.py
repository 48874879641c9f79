"""One decoded frame -> upright RGB pixels, and what is to say about its colours (PyAV's swscale).

The conversion is exact to one level of 255: chroma is interpolated at the place where
the file says that it was taken, and the matrix (BT.601, BT.709, BT.2020) and the range are those of
the file. A file that does not say has BT.601 and the limited range, as in FFmpeg.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from exporter.inputs.container import THREAD_TYPE

if TYPE_CHECKING:
    from av import VideoFrame

Convert = Callable[..., Any]  # as `VideoReformatter.reformat`: a frame and keywords -> a frame

# swscale's BILINEAR | FULL_CHR_H_INT | ACCURATE_RND | BITEXACT. Without FULL_CHR_H_INT, two pixels
# beside each other share their colour. Without the last two flags, the colours of a pixel depend on
# the vector instructions of the machine. PyAV has no names for these flags, so they are numbers.
# PyAV below 17 converts by another function, which ignores the matrix and the place of the chroma.
CONVERSION = 0x2 | 0x2000 | 0x40000 | 0x80000
_BRIGHTEST = np.uint16(65280 + 127)  # of 16 bits, so that rounding does not overflow
_NOT_SAID, _RESERVED = 2, 3  # matrices of ITU-T H.273; files with the reserved number exist
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273


def upright_rgb(frame: VideoFrame, convert: Convert | None = None) -> tuple[np.ndarray, bool]:
    """Return `(H, W, 3)` uint8, rotated and mirrored by the clip's display matrix (phones).

    The second value says whether rows became columns. `convert` is that of a `VideoReformatter`,
    which prepares a conversion once for all frames alike; the default prepares it for each frame.
    """
    image = _rgb(frame, convert or type(frame).reformat)
    _name_all_side_data()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image, False
    # The rows are (a, b, u), (c, d, v), …: x' = a x + c y, y' = b x + d y. An array has eight
    # orientations; take the one nearest to the angle.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if turned := abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1], turned


@cache
def _name_all_side_data() -> None:
    """Let PyAV read the side data of a frame that holds a kind which it has no name for.

    FFmpeg 8 gives EXIF and the views of a stereo video so. Without a name for it, PyAV raises
    ValueError, and the display matrix beside it is out of reach.
    """
    from av.sidedata.sidedata import Type

    def unnamed(kind: type[Type], number: object) -> Type:
        member = object.__new__(kind)
        member._name_, member._value_ = f"KIND_{number}", number
        return member

    Type._missing_ = classmethod(unnamed)  # pyright: ignore[reportAttributeAccessIssue]


def _rgb(frame: VideoFrame, convert: Convert) -> np.ndarray:
    """Return `(H, W, 3)` uint8, as the frame is stored."""
    how = {"interpolation": CONVERSION, "threads": 1 if THREAD_TYPE.get() == "NONE" else 0}
    if _is_deep(frame):
        return _rgb_of_deep(frame, convert, how)
    if not _is_yuv(frame):
        return convert(frame, format="rgb24", **how).to_ndarray()
    if frame.colorspace == _RESERVED:
        frame.colorspace = _NOT_SAID
    if frame.interlaced_frame:
        frame = _as_progressive(frame)
    # In 8 bits swscale takes a colour of twice the brightest for black; in 16 bits it does not.
    deep = convert(frame, format="gbrp16le", **how)
    image = np.empty((frame.height, frame.width, 3), np.uint8)
    for plane, channel in zip(deep.planes, (1, 2, 0), strict=True):
        # A plane is a buffer, which PyAV's types do not say.
        rows = np.frombuffer(cast("bytes", plane), "<u2").reshape(frame.height, -1)
        rows = rows[:, : frame.width]
        # 255 is 65280 there. Round to the nearest level.
        image[..., channel] = (np.minimum(rows, _BRIGHTEST) + np.uint16(128)) >> 8
    return image


def _as_progressive(frame: VideoFrame) -> VideoFrame:
    """Return a frame without its mark as interlaced; the pixels are shared.

    swscale converts a frame with this mark field by field. The programs that read the clips of a
    training do not, and FFmpeg's own filter `scale` does it on request only.
    """
    from av.filter import Graph

    graph, unit = Graph(), frame.time_base or Fraction(1)
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=unit
    )
    graph.link_nodes(source, graph.add("setfield", "prog"), graph.add("buffersink")).configure()
    graph.push(frame)
    return cast("VideoFrame", graph.pull())


def _is_deep(frame: VideoFrame) -> bool:
    """Whether a frame of RGB or gray has more than 8 bits: whole numbers, or planes of float32."""
    name, bits = frame.format.name, frame.format.components[0].bits
    in_planes = name.startswith(("gbr", "gray"))
    known = in_planes if bits == 32 else 8 < bits <= 16 and "f16" not in name
    return known and not _is_yuv(frame)


def _rgb_of_deep(frame: VideoFrame, convert: Convert, how: dict[str, Any]) -> np.ndarray:
    """Round to the nearest level: swscale cuts the bits off, which is up to 1.5 levels wrong."""
    size, name = (frame.height, frame.width), frame.format.name
    if not name.startswith(("gbr", "gray")):
        packed = convert(frame, format="rgb48le", **how).planes[0]
        rows = np.frombuffer(cast("bytes", packed), "<u2").reshape(size[0], -1)
        return _to_levels(rows[:, : 3 * size[1]].reshape(*size, 3), 2**16 - 1)
    # There is a plane for each channel, and one of alpha.
    planes = [frame.planes[i] for i in ((2, 0, 1) if name.startswith("gbr") else (0, 0, 0))]
    bits = frame.format.components[0].bits
    kind = f"{'>' if frame.format.is_big_endian else '<'}{'f4' if bits == 32 else 'u2'}"
    deep = [np.frombuffer(cast("bytes", plane), kind).reshape(size[0], -1) for plane in planes]
    values = np.stack([rows[:, : size[1]] for rows in deep], axis=-1)
    if bits == 32:
        return np.rint(255 * np.nan_to_num(values).clip(0, 1)).astype(np.uint8)
    return _to_levels(values, 2**bits - 1)


def _to_levels(values: np.ndarray, most: int) -> np.ndarray:
    """Round whole numbers from 0 to `most` to levels from 0 to 255."""
    return ((510 * values.astype(np.uint32) + most) // (2 * most)).astype(np.uint8)


def _is_yuv(frame: VideoFrame) -> bool:
    stored = frame.format
    return not (stored.is_rgb or stored.has_palette) and len(stored.components) >= 3


def pixel_aspect(ratio: Fraction | None, *, turned: bool) -> Fraction:
    """Return width over height of an upright pixel; 1 where the file does not say."""
    if not ratio or ratio <= 0:
        return Fraction(1)
    return 1 / Fraction(ratio) if turned else Fraction(ratio)


def hdr(frame: VideoFrame) -> str:
    """Return the name of the frame's HDR curve, or ""."""
    return _HDR.get(frame.color_trc, "")
