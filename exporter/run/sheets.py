"""The frames of the real clips as the model saw them, for the contact sheets of a report."""

from __future__ import annotations

import numpy as np

from exporter.inputs.clips import Inputs
from exporter.results import Sheet
from model.preprocessing import Preprocessing

MOST_CLIPS, MOST_FRAMES, MOST_SIDE = 4, 16, 128  # a page stays small: one frame is about 40 KB


def make_sheets(inputs: Inputs, preprocessing: Preprocessing) -> tuple[Sheet, ...]:
    """Make a sheet for each of the first real clips: its frames, each with its number and time."""
    sheets = []
    for place, taken in enumerate(inputs.taken[:MOST_CLIPS]):
        pixels = as_shown(inputs.arrays["video"][place], preprocessing)
        shown = np.unique(np.linspace(0, len(pixels) - 1, MOST_FRAMES).round().astype(int))
        captions = [_caption(taken.indices, taken.times, number) for number in shown]
        small = tuple(_smaller(pixels[number]) for number in shown)
        sheets.append(Sheet(inputs.names[place], len(pixels), small, tuple(captions)))
    return tuple(sheets)


def as_shown(video: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Return uint8 pixels `(f, h, w, 3)` in RGB of one input: the inverse of its preprocessing."""
    if preprocessing.embedded:
        pixels = video
    else:
        scale = (np.asarray(each, np.float32) for each in (preprocessing.std, preprocessing.mean))
        std, mean = (each[:, np.newaxis, np.newaxis] for each in scale)
        pixels = np.rint(255 * (video * std + mean)).clip(0, 255).astype(np.uint8)
        pixels = np.moveaxis(pixels, 1, -1)  # f h w c
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    return pixels[..., ::-1] if preprocessing.channel_order == "bgr" else pixels


def _caption(indices: tuple[int, ...], times: tuple[float, ...], number: int) -> str:
    frame = f"frame {indices[number]}"
    return f"{times[number]:.2f} s, {frame}" if times else frame


def _smaller(image: np.ndarray) -> np.ndarray:
    """Average blocks of pixels, so that no side is longer than the limit."""
    block = -(-max(image.shape[:2]) // MOST_SIDE)
    height, width = (side // block * block for side in image.shape[:2])
    blocks = image[:height, :width].reshape(height // block, block, width // block, block, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)
