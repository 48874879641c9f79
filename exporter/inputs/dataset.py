"""Labelled clips: the built-in task (`motion`), or a folder with one subfolder for each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.errors import UsageError
from exporter.inputs.clips import read_for
from exporter.inputs.motion import MOTION_LABELS, motion_clips
from exporter.inputs.video import as_input
from model.classifier import VideoClassifier
from model.config import nearest

MOTION = "motion"
MOTION_CLIPS = 512
_SEED = 20_000  # far from the training seeds: an evaluation clip must not be a training clip
_CHUNK = 64  # clips held in memory


@dataclass(frozen=True)
class Dataset:
    """Labelled clips for one model; `chunks` reads or makes them."""

    name: str
    count: int
    model: VideoClassifier
    files: tuple[tuple[Path, int], ...] = ()

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield some clips at a time: `video` `(n, ...)` as the model takes it, labels `(n,)`."""
        if not self.files:
            yield from self._motion()
            return
        for path, label in self.files:
            clip = read_for(self.model.config, self.model.preprocessing.one_view, path)
            yield clip.array, np.array([label])

    def _motion(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        config = self.model.config
        for chunk, done in enumerate(range(0, self.count, _CHUNK)):
            clips, labels = motion_clips(
                min(_CHUNK, self.count - done),
                config.frames,
                config.height,
                config.width,
                seed=_SEED + chunk,
                channels=config.channels,
            )
            yield as_input(clips, self.model.preprocessing), labels


def open_dataset(name: str, model: VideoClassifier) -> Dataset:
    """Find a dataset and check that it fits the model.

    Raises:
        UsageError: if no such dataset exists, or the model does not have its classes.
    """
    if name == MOTION:
        labels = model.labels
        same_count = model.config.num_classes == len(MOTION_LABELS)
        if not same_count or (labels and labels != MOTION_LABELS):
            raise UsageError(
                "--eval motion needs a model trained on the built-in task",
                got=f"{model.config.num_classes} classes",
                remedy="train one with scripts/train_demo.py, or give a folder of labelled clips",
            )
        return Dataset(MOTION, MOTION_CLIPS, model)
    folder = Path(name)
    if not folder.is_dir():
        raise UsageError(
            "--eval", got=repr(name), expected="motion, or a folder with a folder for each class"
        )
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    places = _places([path.name for path in classes], model)
    files = tuple(
        (clip, places[path.name])
        for path in classes
        for clip in sorted(path.iterdir())
        if clip.is_file() and not clip.name.startswith(".")
    )
    if not files:
        raise UsageError(f"--eval: no clips in {folder}", expected="class/clip.mp4")
    return Dataset(str(folder), len(files), model, files)


def _places(classes: Sequence[str], model: VideoClassifier) -> dict[str, int]:
    """Map each class to the index of its logit.

    The index is that of the model's label. A model without labels takes the classes in order.
    """
    labels = model.labels
    if labels is None:
        if len(classes) != model.config.num_classes:
            raise UsageError(
                "--eval: the model has no labels, so each of its classes needs a folder",
                got=f"{len(classes)} folders",
                expected=model.config.num_classes,
            )
        return {name: place for place, name in enumerate(classes)}
    for name in classes:
        if name not in labels:
            closest = nearest(name, labels)
            raise UsageError(
                f"--eval: {name!r} is no class of the model",
                remedy=f"did you mean {closest!r}?" if closest else None,
            )
    return {name: labels.index(name) for name in classes}
