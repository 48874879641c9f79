"""Accuracy on labelled clips: the cost of a precision to a user, beside its rounding error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from exporter.inputs.dataset import Dataset
from exporter.results import Accuracy
from exporter.runners.base import Runner

_Z = 1.96  # of a 95 % interval


def predict(runner: Runner, video: np.ndarray, batch: int) -> np.ndarray:
    """Find the first class of each clip, `(n, f, c, h, w) -> (n,)`, in batches of `batch`.

    A clip with a logit that is not finite gets class -1, which is never right.
    """
    places = np.arange(math.ceil(len(video) / batch) * batch) % len(video)
    logits = [
        runner.run({"video": video[places[start : start + batch]]})["logits"]
        for start in range(0, len(places), batch)
    ]
    rows = np.concatenate(logits)[: len(video)]
    return np.where(np.isfinite(rows).all(-1), rows.argmax(-1), -1)


def evaluate(runners: Sequence[Runner], dataset: Dataset, batch: int) -> list[Accuracy]:
    """Measure the accuracy of each runtime, and how often it agrees with the first one."""
    correct, agreeing, total = np.zeros(len(runners), int), np.zeros(len(runners), int), 0
    for video, labels in dataset.chunks():
        found = [predict(runner, video, batch) for runner in runners]
        correct += [int((classes == labels).sum()) for classes in found]
        agreeing += [int((classes == found[0]).sum()) for classes in found]
        total += len(labels)
    return [
        summarize(runner, dataset.name, total, int(right), int(same))
        for runner, right, same in zip(runners, correct, agreeing, strict=True)
    ]


def summarize(runner: Runner, dataset: str, clips: int, correct: int, agreeing: int) -> Accuracy:
    """Compute accuracy with the 95 % interval of Wilson (1927), valid near 0 and 1 too (pure)."""
    share = correct / clips
    spread = _Z**2 / clips
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / clips + spread / (4 * clips)) / (1 + spread)
    return Accuracy(
        runner.name,
        runner.device,
        runner.precision,
        dataset,
        clips,
        share,
        min(share, centre - half),  # at 0 and 1 they differ only by rounding
        max(share, centre + half),
        agreeing / clips,
    )
