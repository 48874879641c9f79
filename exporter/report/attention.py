"""Shares of attention over the frames of a clip -> a picture (PNG) and a page (HTML)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.report.pages import write_page
from exporter.report.png import png

_IN_A_ROW = 8  # frames of the picture
_GAP = 4  # pixels
_EDGE = ((0, _GAP), (0, _GAP), (0, 0))
_LEAST_SIDE = 160  # small frames are enlarged
_COLOURS = np.array(  # from little to much attention
    [(12, 8, 60), (110, 30, 120), (205, 60, 80), (250, 150, 50), (252, 250, 160)], np.float64
)


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a model looked in one clip.

    `pixels` are the frames, uint8 `(f, h, w, 3)`; `shares` those of the patches in the class token,
    `(f, rows, columns)`; `captions` say which frames these are.
    """

    clip: str
    model: str
    answer: str
    pixels: np.ndarray
    shares: np.ndarray
    captions: tuple[str, ...]

    @property
    def of_frames(self) -> np.ndarray:
        """The part of the attention on patches that each frame has, `(f,)`."""
        sums = self.shares.sum((1, 2))
        return sums / sums.sum()


def write_explanation(found: Explanation, picture: Path, page: Path) -> None:
    """Write the frames and their attention as a PNG picture and as a page."""
    frames, heat = _enlarge(found.pixels), _enlarge(overlay(found.pixels, found.shares))
    picture.write_bytes(png(contact_sheet(frames, heat)))
    figures = list(zip(frames, heat, found.captions, found.of_frames, strict=True))
    write_page(page, "explain.html.jinja", found=found, figures=figures)


def overlay(pixels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Colour frames `(f, h, w, 3)` by the shares of their patches; the largest is brightest."""
    height, width = (
        size // cells for size, cells in zip(pixels.shape[1:3], shares.shape[1:], strict=True)
    )
    level = shares / (shares.max() or 1.0)
    level = level.repeat(height, axis=1).repeat(width, axis=2)  # f h w
    place = level * (len(_COLOURS) - 1)
    below = np.minimum(place.astype(int), len(_COLOURS) - 2)
    part = (place - below)[..., np.newaxis]
    colours = _COLOURS[below] * (1 - part) + _COLOURS[below + 1] * part
    grey = pixels.mean(-1, keepdims=True)
    return (0.4 * grey + 0.6 * colours).round().astype(np.uint8)


def contact_sheet(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay frames out in rows, each above its attention: uint8 `(h, w, 3)`."""
    rows = []
    for start in range(0, len(frames), _IN_A_ROW):
        for images in (frames, heat):
            row = list(images[start : start + _IN_A_ROW])
            row += [np.full_like(row[0], 255)] * (min(_IN_A_ROW, len(frames)) - len(row))
            rows.append(np.concatenate([np.pad(one, _EDGE, constant_values=255) for one in row], 1))
    return np.concatenate(rows)


def _enlarge(pixels: np.ndarray) -> np.ndarray:
    """Repeat the pixels of small frames."""
    times = -(-_LEAST_SIDE // min(pixels.shape[1:3]))
    return pixels.repeat(times, axis=1).repeat(times, axis=2)
