"""An export and labelled clips -> accuracy on each runtime, and how often runtimes agree.

Every clip is read once and run by every runtime. A bad clip is a row with its reason.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.inputs.dataset import Dataset, name_of, open_dataset
from exporter.predict.answers import order_of, scores_of
from exporter.predict.batches import Batches, in_batches
from exporter.predict.card import Card, check_top
from exporter.predict.decode import Readers
from exporter.predict.label import as_text
from exporter.predict.metrics import NO_CLASS, RANKED, Metrics, agreement, measure
from exporter.predict.read import ReadClip
from exporter.predict.rows import RowLog
from exporter.spec.checks import check_count
from model.config import ClipConfig
from model.preprocessing import Preprocessing
from model.task import TaskName

OnClip = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: how its clips are read, and what its logits mean."""

    config: ClipConfig
    preprocessing: Preprocessing
    task: TaskName
    labels: tuple[str, ...]


@dataclass(frozen=True)
class BadClip:
    """A clip without an answer, and why."""

    clip: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """The figures of one runtime; `agreement` is the share of the answers of the first runtime."""

    name: str
    runtime: str
    device: str
    precision: str
    metrics: Metrics
    agreement: float | None


@dataclass(frozen=True)
class Evaluation:
    """The figures of every runtime on the same clips; the first runtime is the main one."""

    data: str
    task: TaskName
    judged: tuple[Judged, ...]
    bad: tuple[BadClip, ...]
    seconds: float
    clips_read: int

    @property
    def bad_share(self) -> float:
        """The share of clips without an answer."""
        return len(self.bad) / max(self.judged[0].metrics.clips + len(self.bad), 1)

    def confusions(self, most: int) -> list[tuple[str, str, int]]:
        """List the most frequent wrong answers of the main runtime: class, answer, clips."""
        metrics = self.judged[0].metrics
        names = [row.label for row in metrics.per_class]
        counted = np.array(metrics.confusion or np.zeros((0, 0)), int)
        np.fill_diagonal(counted, 0)
        order = np.argsort(-counted, axis=None, kind="stable")[:most]
        found = (tuple(map(int, np.unravel_index(place, counted.shape))) for place in order)
        return [(names[t], names[p], int(counted[t, p])) for t, p in found if counted[t, p]]

    def to_dict(self) -> dict[str, Any]:
        """Convert it to values that JSON can hold; the main runtime first, then the others."""
        main, *others = (_flat(row) for row in self.judged)
        return {
            "data": self.data,
            "task": self.task,
            "clips": main.pop("clips"),
            "bad": len(self.bad),
            **main,
            "others": others,
            "bad_clips": [asdict(clip) for clip in self.bad],
            "seconds": self.seconds,
            "clips_per_s": self.clips_read / self.seconds if self.seconds else None,
        }


def _flat(row: Judged) -> dict[str, Any]:
    facts = asdict(row)
    return facts.pop("metrics") | {"export": facts.pop("name")} | facts


def open_data(name: str, card: Card) -> Dataset:
    """Find the labelled clips of an export: see `exporter.inputs.dataset`.

    Raises:
        UsageError: if no such dataset exists, the model does not have its classes, or the export
            gives no logits.
    """
    check_top(card, None)
    labels = card.labels if card.named else None
    return open_dataset(name, card.task, card.config, labels, "DATA")


def evaluate(
    models: Sequence[tuple[str, Batches]],
    subject: Subject,
    dataset: Dataset,
    *,
    jobs: int = 1,
    kept: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
    on_clip: OnClip = lambda _done, _total, _clip: None,
) -> Evaluation:
    """Answer every clip with every runtime, and measure.

    Args:
        models: The runtimes, with the names of their exports; the main one first.
        subject: How clips are read, and what the logits mean.
        dataset: The labelled clips.
        jobs: Processes that read clips beside the run; 0 reads in this one.
        kept: A file that keeps the answers, to continue from after a kill.
        made_by: What decides the answers, for that file.
        on_clip: Called with the clips done, all clips, and the last clip.

    Raises:
        UsageError: if `jobs` is not 0 to 512.
        RuntimeFailure: if a runtime fails.
        OutputError: if the file cannot be used, or has answers of something else.
    """
    check_count("--jobs", jobs, least=0, needed=True)
    started, count = time.perf_counter(), len(dataset.clips)
    found: dict[int, dict[str, Any]] = {}
    answers = {**(made_by or {}), "clips": _digest(dataset)}
    with nullcontext() if kept is None else RowLog(kept, answers) as log:
        if log is not None:
            found = {row["at"]: row for row in log.rows()}
        todo = [place for place in range(count) if place not in found]
        before = len(found)
        for rows in _answer(models, subject, dataset, todo, jobs):
            found |= {row["at"]: row for row in rows}
            if log is not None:
                log.append(rows)
            on_clip(len(found), count, rows[-1]["clip"])
    rows = [found[place] for place in range(count)]
    judged = _judge(models, subject, dataset, [row for row in rows if not row["error"]])
    bad = tuple(BadClip(row["clip"], row["error"]) for row in rows if row["error"])
    seconds = time.perf_counter() - started
    return Evaluation(dataset.name, subject.task, judged, bad, seconds, count - before)


def _answer(
    models: Sequence[tuple[str, Batches]],
    subject: Subject,
    dataset: Dataset,
    todo: Sequence[int],
    jobs: int,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of some clips at a time, in their order."""
    size = max(batches.most for _, batches in models)
    with Readers(subject.config, subject.preprocessing, jobs) as readers:
        sources = (dataset.clips[place].source for place in todo)
        places = iter(todo)
        for group in in_batches(readers.read(sources, ahead=size + 2 * jobs), size):
            good = [clip.array for clip in group if clip.array is not None]
            logits = [iter(batches.logits(good)) for _, batches in models]
            found = (
                [] if clip.array is None else [next(rows) for rows in logits] for clip in group
            )
            yield [
                _row(next(places), clip, rows, models, subject)
                for clip, rows in zip(group, found, strict=True)
            ]


def _row(
    at: int,
    clip: ReadClip,
    logits: Sequence[np.ndarray],
    models: Sequence[tuple[str, Batches]],
    subject: Subject,
) -> dict[str, Any]:
    """Make the row of a clip: what the figures need of the answer of each runtime."""
    answers = [_answer_of(rows, subject) for rows in logits]
    error = clip.error
    if None in answers:
        runner = models[answers.index(None)][1].runner
        error = (
            f"NaN or Inf among the logits of {runner.name} ({runner.device}, {runner.precision})"
        )
        answers = []
    told = {"clip": name_of(clip.source), "note": clip.note, "error": error}
    return {"at": at, "answers": answers, **{name: as_text(text) for name, text in told.items()}}


def _answer_of(logits: np.ndarray, subject: Subject) -> list[float] | None:
    """Give the best classes of a clip, all its sigmoids, or its values."""
    if not np.isfinite(logits).all():
        return [NO_CLASS] if subject.task == "single-label" else None
    scores = scores_of(logits, subject.task, subject.preprocessing.views.average)
    if subject.task == "single-label":
        return [int(place) for place in order_of(scores, subject.task, RANKED)]
    return [float(f"{score:.8g}") for score in scores]


def _judge(
    models: Sequence[tuple[str, Batches]],
    subject: Subject,
    dataset: Dataset,
    rows: Sequence[Mapping[str, Any]],
) -> tuple[Judged, ...]:
    """Measure each runtime on the rows of the clips that have answers."""
    targets = [dataset.clips[row["at"]].target for row in rows]
    judged, first = [], [row["answers"][0] for row in rows]
    for place, (name, batches) in enumerate(models):
        answers = [row["answers"][place] for row in rows]
        metrics = measure(subject.task, subject.labels, targets, answers)
        same = agreement(subject.task, first, answers)
        runner = batches.runner
        judged.append(Judged(name, runner.name, runner.device, runner.precision, metrics, same))
    return tuple(judged)


def _digest(dataset: Dataset) -> str:
    listed = json.dumps([(as_text(clip.name), clip.target) for clip in dataset.clips])
    return hashlib.sha256(listed.encode()).hexdigest()
