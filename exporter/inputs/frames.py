"""Frames that are no video file: images in a folder, a list of images, an array of pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from exporter.errors import VideoError
from exporter.inputs.container import check_file, open_video
from exporter.inputs.container import frames as decode_frames
from exporter.inputs.decode import Decoded
from exporter.inputs.resize import Frame

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_OF_SYSTEM = ("thumbs.db", "desktop.ini")  # Windows puts them into any folder of images
Pixels = Sequence[Path] | np.ndarray


def find_images(folder: Path) -> tuple[Path, ...]:
    """Return the images of a folder in the order of the numbers in their names.

    Return nothing if the folder holds anything else: then it is no clip.
    """
    files = _visible(folder)
    if not all(_is_image(path) for path in files):
        return ()
    return tuple(sorted(files, key=lambda path: _order(path.name)))


def what_is_in(folder: Path) -> str:
    """Say why a folder is no clip: it is empty, or holds something that is no image."""
    others = sorted(path.name for path in _visible(folder) if not _is_image(path))
    return f"a directory with {others[0]}" if others else "an empty directory"


def clips_in(path: Path) -> list[Path]:
    """Return a file, or the files and the folders of frames below a folder, without hidden ones."""
    if not path.is_dir():
        return [path]
    found = []
    for name, folders, files in os.walk(path):
        folder = Path(name)
        if find_images(folder):  # one clip, whose frames these are
            found.append(folder)
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [folder / name for name in sorted(files) if not is_hidden(name)]
    return found


def is_hidden(name: str) -> bool:
    """Whether a file is hidden by its name, on any system: it is no clip and no frame."""
    return name.startswith(".")


def _visible(folder: Path) -> list[Path]:
    return [
        p for p in folder.iterdir() if not is_hidden(p.name) and p.name.lower() not in _OF_SYSTEM
    ]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _order(name: str) -> tuple[tuple[int, str], ...]:
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdecimal() else (0, part) for part in parts)


def gaps(images: Pixels) -> str:
    """Say which frame is missing, by the last number in the names of the images, or ""."""
    if isinstance(images, np.ndarray):
        return ""
    found = [re.findall(r"\d+", path.stem) for path in images]
    if not all(found):
        return ""
    numbers = [int(each[-1]) for each in found]
    lost = next((a for a, b in pairwise(numbers) if b > a + 1), None)
    return "" if lost is None else f"the frame after number {lost} is missing"


def check_pixels(pixels: np.ndarray) -> None:
    """Raise `VideoError` unless an array is `(N, H, W, 3)` or `(N, H, W, 1)` uint8."""
    if pixels.ndim == 4 and pixels.shape[3] in (1, 3) and pixels.dtype == np.uint8 and pixels.size:
        return
    raise VideoError(
        "an array of frames cannot be read",
        got=f"{pixels.dtype} of shape {pixels.shape}",
        expected="uint8 pixels (N, H, W, 3) in the order RGB, or (N, H, W, 1)",
    )


def take_images(images: Pixels, choose: Callable[[int], Collection[int]], to: Frame) -> Decoded:
    """Read and resize the images that `choose` wants of N.

    Raises:
        VideoError: if an image cannot be read, or there is none.
    """
    taken = Decoded(count=len(images))
    for index in sorted(set(choose(taken.count))):
        if isinstance(images, np.ndarray):
            image = np.broadcast_to(images[index], (*images.shape[1:3], 3))
            taken.source_size = image.shape[0], image.shape[1]
            taken.images[index] = to.crops_of(image, taken.aspect)
        else:
            _read_image(images[index], index, taken, to)
    return taken


def _read_image(path: Path, index: int, taken: Decoded, to: Frame) -> None:
    check_file(path)
    faults: list[str] = []
    with open_video(path) as stream:
        frame = next(decode_frames(stream, faults), None)
        if frame is None:
            reason = faults[0] if faults else None
            raise VideoError(f"{path} is no image", got=reason, remedy="write the frame again")
        taken.keep(index, frame, stream, to)
        taken.damaged += frame.is_corrupt
        taken.faults += faults
