"""Pixels -> a PNG image inside a page (standard library and numpy)."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB8 = struct.pack(">BBBBB", 8, 2, 0, 0, 0)  # bits, colours, deflate, filters, no interlace


def png_uri(pixels: np.ndarray) -> str:
    """Return the `data:` URI of uint8 pixels `(h, w, 3)` in RGB."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels `(h, w, 3)` in RGB."""
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, -1).astype(np.int16)
    rows[:, 3:] -= pixels.reshape(height, -1)[:, :-3]  # each pixel minus the one to its left
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0], filtered[:, 1:] = 1, rows.astype(np.uint8)
    size = struct.pack(">II", width, height) + _RGB8
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
