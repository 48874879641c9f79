"""Hostile clips: damage, sizes without end, and what is no clip."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

Make = Callable[[Path], list[str]]
_PNG = b"\x89PNG\r\n\x1a\n"


def cases() -> Iterator[tuple[str, Make]]:
    """Yield name and maker of each case; the clips are read before a model is exported."""
    for side in (8192, 30_000, 2**20, 2**31 - 1):
        yield f"picture of {side} pixels a side", lambda f, s=side: _read(f, "c.png", _picture(s))
    texts = {
        "text": b"not a clip " * 100,
        "zeros": bytes(100_000),
        "playlist": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "subtitles": b"1\n00:00:00,000 --> 99:59:59,000\n\x1b[2J\n",
    }
    for name, content in texts.items():
        yield name, lambda f, c=content: _read(f, "c.mp4", c)
    for name in ("http://127.0.0.1:9/c.mp4", "/dev/zero", "/dev/video9", "concat:a|b", ""):
        yield f"path {name}", lambda _, n=name: _command(n)
    for seed in range(16):
        yield f"cut {seed}", lambda f, s=seed: _read(f, "c.mp4", _cut(f, s))
    yield "pipe", _pipe


def _command(path: str) -> list[str]:
    sizes = ["--frames=2", "--res=32", "--dim=32", "--dim-head=16", "--depth=1"]
    return ["export", *sizes, "--engine=none", "--bench-seconds=0", f"--video={path}", "-o=out"]


def _read(folder: Path, name: str, content: bytes) -> list[str]:
    (folder / name).write_bytes(content)
    return _command(str(folder / name))


def _chunk(kind: bytes, content: bytes) -> bytes:
    whole = kind + content
    return len(content).to_bytes(4, "big") + whole + zlib.crc32(whole).to_bytes(4, "big")


def _picture(side: int) -> bytes:
    """A picture of one colour, whose rows are there up to 30,000 a side."""
    rows = bytes((side // 8 + 1) * side) if side <= 30_000 else b""
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows, 9)), _chunk(b"IEND", b""))
    # A picture is a clip of one frame, which the export would then take: end it too early.
    return _PNG + b"".join(parts) if side > 8192 else _PNG + parts[0] + parts[1][:-20]


def _cut(folder: Path, seed: int) -> bytes:
    path, generator = folder / "whole.mp4", random.Random(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(10):
            image = np.full((48, 64, 3), 20 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    for place in range(len(content) - 400, len(content), 1 + seed):  # its index, at the end
        content[place] = generator.randrange(256)
    return bytes(content[: len(content) - 20 * seed])


def _pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "c.mp4")
    return _command(str(folder / "c.mp4"))
