"""Clips -> logits in full batches: a batch of eight holds eight different clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np

from exporter.predict.read import ReadClip
from exporter.runners.base import Runner, check_outputs
from model.outputs import LOGITS

T = TypeVar("T")


class Batches:
    """A runner, and the sizes of the batches that it takes.

    Args:
        runner: An open runner.
        least: The smallest batch; fewer clips are filled up with copies of the last one.
        most: The largest batch.
    """

    def __init__(self, runner: Runner, least: int, most: int) -> None:
        self.runner, self.least, self.most = runner, least, most

    def logits(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Compute the logits of clips `(v, ...)` of one or more views: `(v, classes)` for each.

        Raises:
            RuntimeFailure: if the runtime fails.
        """
        return [found[LOGITS] for found in self.outputs(clips, (LOGITS,))]

    def outputs(
        self, clips: Sequence[np.ndarray], names: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Compute some outputs of clips `(v, ...)` of one or more views: `(v, ...)` by its name.

        Raises:
            RuntimeFailure: if the runtime fails, or does not give one of the outputs.
        """
        if not clips:
            return []
        video, parts = _joined(clips), {name: [] for name in names}
        for at in range(0, len(video), self.most):
            made = self.run(video[at : at + self.most])
            check_outputs(self.runner, made, names)
            for name in names:  # the others may be large, and are not kept
                parts[name].append(made[name])
        ends = np.cumsum([len(clip) for clip in clips])[:-1]
        split = {name: np.split(_joined(rows), ends) for name, rows in parts.items()}
        return [{name: split[name][place] for name in names} for place in range(len(clips))]

    def run(self, video: np.ndarray) -> dict[str, np.ndarray]:
        """Compute every output of at most `most` clips `(b, ...)`: `(b, ...)` each, by its name.

        Raises:
            RuntimeFailure: if the runtime fails.
        """
        count, missing = len(video), self.least - len(video)
        if missing > 0:
            video = np.concatenate([video, np.repeat(video[-1:], missing, axis=0)])
        inputs = {"video": video}
        if "mask" in self.runner.input_shapes:
            inputs["mask"] = np.ones(video.shape[:2], bool)  # look at every frame
        return {name: array[:count] for name, array in self.runner.run(inputs).items()}


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def in_groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def in_batches(clips: Iterable[ReadClip], size: int) -> Iterator[list[ReadClip]]:
    """Yield groups with `size` clips that could be read, and the bad clips between them."""
    group: list[ReadClip] = []
    good = 0
    for clip in clips:
        group.append(clip)
        good += clip.array is not None
        if good == size:
            yield group
            group, good = [], 0
    if group:
        yield group
