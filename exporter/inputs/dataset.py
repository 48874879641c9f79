"""Labelled clips: the built-in task (`motion`), a folder of classes, or a list of clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.errors import UsageError
from exporter.inputs.class_names import place_classes
from exporter.inputs.clip_list import read_clip_list
from exporter.inputs.clips import read_for
from exporter.inputs.frames import find_images, is_hidden
from exporter.inputs.motion import MOTION_LABELS, check_sizes, motion_clips
from exporter.inputs.video import as_input
from model.config import ClipConfig
from model.preprocessing import Preprocessing
from model.task import TaskName

MOTION = "motion"
MOTION_CLIPS = 512
_SEED = 20_000  # far from the training seeds: an evaluation clip must not be a training clip
_SEEDED = 64  # clips of one seed

# A file, or the number of a clip of the built-in task.
Source = Path | int


@dataclass(frozen=True)
class Labelled:
    """A clip and its target: its class, its labels (indices of logits), or its values."""

    source: Source
    target: tuple[float, ...]

    @property
    def name(self) -> str:
        """The path of the file, or the name of a clip of the built-in task."""
        return name_of(self.source)


@dataclass(frozen=True)
class Dataset:
    """Labelled clips, in a fixed order."""

    name: str
    clips: tuple[Labelled, ...]


def name_of(source: Source) -> str:
    """Return the path of a file, or the name of a clip of the built-in task."""
    return f"{MOTION}-{source}" if isinstance(source, int) else str(source)


def read_source(
    source: Source, config: ClipConfig, preprocessing: Preprocessing
) -> tuple[np.ndarray, str]:
    """Read or make a clip `(v, ...)` of v views as the model takes it; return its note too.

    Raises:
        VideoError: if a file cannot be read.
    """
    if isinstance(source, Path):
        clip = read_for(config, preprocessing, source)
        return clip.array, clip.note
    seed, place = divmod(source, _SEEDED)
    size = (config.frames, config.height, config.width)
    how = {"seed": _SEED + seed, "channels": config.channels, "first": place}
    pixels, _ = motion_clips(1, *size, **how)
    return as_input(pixels, preprocessing), ""


def open_dataset(
    name: str,
    task: TaskName,
    config: ClipConfig,
    labels: Sequence[str] | None,
    option: str = "--eval",
) -> Dataset:
    """Find a dataset and check that it fits the model.

    Args:
        name: `motion`, a folder with a folder for each class, or a list of clips.
        task: What the logits mean.
        config: The sizes of the clips, and the number of logits.
        labels: The names of the classes, if known.
        option: What names the dataset in messages.

    Raises:
        UsageError: if no such dataset exists, the model does not have its classes, or its clips are
            too small for the built-in task.
    """
    outputs = config.num_classes
    if name == MOTION:
        return _motion(task, config, labels, option)
    path = Path(name)
    if path.is_dir():
        return _folder(path, task, outputs, labels, option)
    if not path.is_file():
        expected = "motion, a folder with a folder for each class, or a list of clips"
        raise UsageError(option, got=repr(name), expected=expected)
    clips = read_clip_list(path, task, outputs, labels, option)
    return Dataset(str(path), tuple(Labelled(clip, target) for clip, target in clips))


def _motion(
    task: TaskName, config: ClipConfig, labels: Sequence[str] | None, option: str
) -> Dataset:
    outputs = config.num_classes
    fits = outputs == len(MOTION_LABELS) and task == "single-label"
    if not fits or (labels and tuple(labels) != MOTION_LABELS):
        raise UsageError(
            f"{option} motion needs a model trained on the built-in task",
            got=f"{outputs} classes",
            remedy="train one with scripts/train_demo.py, or give a folder of labelled clips",
        )
    check_sizes(frames=config.frames, height=config.height, width=config.width)
    classes = len(MOTION_LABELS)
    return Dataset(MOTION, tuple(Labelled(i, (i % classes,)) for i in range(MOTION_CLIPS)))


def _folder(
    folder: Path, task: TaskName, outputs: int, labels: Sequence[str] | None, option: str
) -> Dataset:
    """Take every file of every class; a file that is no clip becomes a bad clip later."""
    if task == "regression":
        what = f"{option}: a folder of classes has no values, and the model gives values"
        raise UsageError(what, got=str(folder), remedy="give a list with lines `path value`")
    inside = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    classes = [path for path in inside if path.is_dir()]
    found = [
        (clip, path.name)
        for path in classes
        for clip in sorted(path.iterdir())
        if _may_be_clip(clip)
    ]
    if not found:
        raise UsageError(f"{option}: no clips in {folder}", expected="class/clip.mp4")
    names = [path.name for path in classes]
    places = place_classes(names, labels, outputs, option, "folder", whole=labels is None)
    clips = tuple(Labelled(clip, (places[name],)) for clip, name in found)
    return Dataset(str(folder), clips)


def _may_be_clip(path: Path) -> bool:
    """Whether a path is a file, or a folder of frames."""
    if is_hidden(path.name):
        return False
    return path.is_file() or (path.is_dir() and bool(find_images(path)))
