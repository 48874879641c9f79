"""Targets and answers of clips -> accuracy, by what the logits mean (pure, numpy only)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exporter.predict.answers import THRESHOLD
from model.task import TaskName

_Z = 1.96  # of a 95 % interval
RANKED = 5  # classes of an answer that are kept: enough for top-1 and top-5
NO_CLASS = -1  # the answer of a clip with a logit that is not finite; it is never right
Interval = tuple[float, float]


@dataclass(frozen=True)
class ClassMetrics:
    """One class, label or value; `clips` are those whose target it is.

    `accuracy` and its `interval` are of single-label tasks, `ap` (average precision) of multi-label
    tasks, `mse` and `r2` of values. None stands for what does not apply.
    """

    index: int
    label: str
    clips: int
    accuracy: float | None = None
    interval: Interval | None = None
    ap: float | None = None
    mse: float | None = None
    r2: float | None = None


@dataclass(frozen=True)
class Metrics:
    """The figures of one runtime on labelled clips; None stands for what does not apply.

    `confusion[t][p]` counts the clips of class t with the answer p. `interval` is the 95 % interval
    of Wilson of `top1`.
    """

    clips: int
    top1: float | None = None
    top5: float | None = None
    mean_class: float | None = None
    map: float | None = None
    mse: float | None = None
    r2: float | None = None
    interval: Interval | None = None
    per_class: tuple[ClassMetrics, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = None

    @property
    def main(self) -> tuple[str, float | None]:
        """The figure by which models of this task are compared, and its name."""
        named = {"top-1": self.top1, "mAP": self.map, "R2": self.r2}
        return next(
            ((name, value) for name, value in named.items() if value is not None), ("", None)
        )


def measure(
    task: TaskName,
    labels: Sequence[str],
    targets: Sequence[Sequence[float]],
    answers: Sequence[Sequence[float]],
) -> Metrics:
    """Compute the figures of n clips.

    Args:
        task: What the logits mean.
        labels: The names of the classes or values.
        targets: For each clip its class, its labels (indices), or its values.
        answers: For each clip its best classes, best first; the sigmoid of every label; or values.
    """
    if not targets:
        return Metrics(0)
    if task == "single-label":
        return _of_classes(labels, np.array([int(target[0]) for target in targets]), answers)
    given = np.array(answers, np.float64).reshape(len(targets), len(labels))
    if task == "multi-label":
        truth = np.zeros(given.shape, bool)
        for row, target in zip(truth, targets, strict=True):
            row[[int(place) for place in target]] = True
        return _of_labels(labels, truth, given)
    return _of_values(labels, np.array(targets, np.float64).reshape(given.shape), given)


def _of_classes(
    labels: Sequence[str], truth: np.ndarray, answers: Sequence[Sequence[float]]
) -> Metrics:
    classes, clips = len(labels), len(truth)
    first = np.array([int(answer[0]) for answer in answers])
    five = np.array([target in answer for target, answer in zip(truth, answers, strict=True)])
    confusion = np.zeros((classes, classes), int)
    known = first != NO_CLASS
    np.add.at(confusion, (truth[known], first[known]), 1)
    of_class = np.bincount(truth, minlength=classes)
    rows = tuple(
        ClassMetrics(place, label, int(count))
        if count == 0
        else ClassMetrics(place, label, int(count), right / count, wilson(int(right), int(count)))
        for place, (label, count, right) in enumerate(
            zip(labels, of_class, np.diag(confusion), strict=True)
        )
    )
    right = int((first == truth).sum())
    return Metrics(
        clips,
        top1=right / clips,
        top5=float(five.mean()) if classes > RANKED else None,
        mean_class=float(np.mean([row.accuracy for row in rows if row.accuracy is not None])),
        interval=wilson(right, clips),
        per_class=rows,
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def _of_labels(labels: Sequence[str], truth: np.ndarray, scores: np.ndarray) -> Metrics:
    rows = tuple(
        ClassMetrics(
            place,
            label,
            int(truth[:, place].sum()),
            ap=average_precision(truth[:, place], scores[:, place]),
        )
        for place, label in enumerate(labels)
    )
    known = [row.ap for row in rows if row.ap is not None]
    return Metrics(len(truth), map=float(np.mean(known)) if known else None, per_class=rows)


def _of_values(labels: Sequence[str], truth: np.ndarray, values: np.ndarray) -> Metrics:
    errors = ((values - truth) ** 2).mean(0)
    spreads = truth.var(0)
    rows = tuple(
        ClassMetrics(
            place,
            label,
            len(truth),
            mse=float(error),
            r2=float(1 - error / spread) if spread > 0 else None,
        )
        for place, (label, error, spread) in enumerate(zip(labels, errors, spreads, strict=True))
    )
    known = [row.r2 for row in rows if row.r2 is not None]
    return Metrics(
        len(truth),
        mse=float(errors.mean()),
        r2=float(np.mean(known)) if known else None,
        per_class=rows,
    )


def wilson(right: int, clips: int) -> Interval:
    """Compute the 95 % interval of a share (Wilson 1927); it is valid near 0 and 1 too."""
    share, spread = right / clips, _Z**2 / clips
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / clips + spread / (4 * clips)) / (1 + spread)
    # At 0 and 1 the share and the bound differ only by rounding.
    return min(share, centre - half), max(share, centre + half)


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float | None:
    """Compute the sum of precision times gain in recall, from the highest score to the lowest.

    Clips with the same score count together. None without a clip that has the label.
    """
    positives = int(truth.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last clip of each score
    hits = np.cumsum(truth[order])[last]
    precision, recall = hits / (last + 1), hits / positives
    return float(np.sum(precision * np.diff(recall, prepend=0.0)))


def agreement(
    task: TaskName, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> float | None:
    """Compute the share of equal answers: first classes, or labels at the threshold.

    None for values, which are not counted, and without clips.
    """
    if not ours or task == "regression":
        return None
    if task == "single-label":
        return float(np.mean([a[0] == b[0] for a, b in zip(ours, theirs, strict=True)]))
    one, other = (np.array(answers) >= THRESHOLD for answers in (ours, theirs))
    return float((one == other).mean())
