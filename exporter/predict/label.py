"""Many clips -> one row each: in parallel, in their order, and resumed after a kill.

A row depends on the export and on its clip, not on the number of processes or the shard. Another
batch may change the last digits: see docs/archive.md.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import UsageError, VideoError
from exporter.inputs.clip_list import find_clip, one_or_more
from exporter.inputs.dataset import name_of
from exporter.inputs.frames import clips_in
from exporter.predict.answers import mean_of_views
from exporter.predict.batches import in_batches
from exporter.predict.card import Card, check_top
from exporter.predict.decode import Readers
from exporter.predict.predictor import Predictor
from exporter.predict.read import ReadClip
from exporter.predict.rows import PARQUET, RowLog, log_path, require_parquet, write_parquet
from exporter.spec.checks import check_count
from exporter.spec.option import MOST_CLIPS
from model.outputs import FEATURES, LOGITS

_DIGITS = 6  # of a score


@dataclass(frozen=True)
class Row:
    """The answer for one clip: its best classes and their scores, or an `error`.

    `seconds` is the time of reading and running it; everything else is the same in every run.
    `features` are float32 values, if they are asked for and the clip is not bad.
    """

    clip: str
    classes: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    note: str = ""
    error: str | None = None
    seconds: float = 0.0
    features: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Labelling:
    """How to label: everything but the clips.

    Args:
        directory: The export.
        device: As for a `Predictor`.
        threads: As for a `Predictor`.
        batch: As for a `Predictor`.
        top: Classes of a row (default 5, or all if there are fewer).
        jobs: Processes that read clips beside the run; 0 reads in the process that runs.
        clip: As for a `Predictor`.
        features: Add the features of the clip to its row; of several views their mean.

    Raises:
        UsageError: if a number is not whole or not in its limits.
    """

    directory: str | Path
    device: str = "cpu"
    threads: int | None = None
    batch: int | None = None
    top: int | None = None
    jobs: int = 1
    clip: Mapping[str, Any] = field(default_factory=dict)
    features: bool = False

    def __post_init__(self) -> None:
        check_count("--threads", self.threads)
        check_count("--batch", self.batch, most=MOST_CLIPS)
        check_count("--jobs", self.jobs, least=0, needed=True)

    def open(self) -> Predictor:
        """Open the export; the caller closes it. Every batch has the same size, also the last."""
        how = {"threads": self.threads, "batch": self.batch, "clip": self.clip}
        predictor = Predictor(self.directory, device=self.device, **how)
        predictor.batches.least = predictor.batches.most  # else the last rows round differently
        return predictor

    def classes_of_a_row(self, card: Card) -> int:
        """Return how many classes a row has; 0 if it has features, of a model without classes.

        Raises:
            UsageError: if the model does not give what a row needs.
        """
        if self.features and FEATURES not in card.outputs:
            raise UsageError(
                "--features needs an export with the output features",
                got=", ".join(card.outputs),
                remedy="export it again with --outputs logits,features",
            )
        if self.features and self.top is None and not card.has_logits:
            return 0
        return check_top(card, self.top)


@dataclass(frozen=True)
class Labelled:
    """What a run did: rows that were there before, rows that it added, and how many are bad."""

    before: int
    added: int
    bad: int
    seconds: float


# Labels clips, some rows at a time, in any order.
Labeller = Callable[[Labelling, Sequence[str]], Iterator[list[Row]]]


def label(
    how: Labelling,
    clips: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    labeller: Labeller | None = None,
    on_progress: Callable[[int, int, str], None] = lambda _done, _total, _clip: None,
) -> Labelled:
    """Append a row for each clip that has none yet; a `.parquet` file is written at the end.

    Args:
        how: The export, and how it runs.
        clips: The paths of the clips, or one; a clip that comes twice has one row.
        out: The file: `.jsonl` or `.parquet`.
        labeller: What labels the clips (default: this process).
        on_progress: Called with the clips done, all clips, and the last clip.

    Raises:
        UsageError: if the file has another ending, or the model does not give what a row needs.
        OutputError: if the file cannot be used, or has rows of another model.
        TsformerError: if the export cannot be run.
    """
    out = Path(out)
    if out.suffix not in (".jsonl", PARQUET):
        raise UsageError("-o", got=out.name, expected="a name that ends in .jsonl or .parquet")
    if out.suffix == PARQUET:
        require_parquet()
    started, added, bad = time.perf_counter(), 0, 0
    card = Card.read(Path(how.directory))
    with RowLog(log_path(out), _made_by(how, card)) as log:
        known = {row["clip"]: bool(row["error"]) for row in log.rows()}
        wanted = list(dict.fromkeys(map(str, one_or_more(clips))))
        todo = [clip for clip in wanted if as_text(clip) not in known]
        before = len(wanted) - len(todo)
        for rows in (labeller or label_here)(how, todo):
            log.append(_columns(row, how) for row in rows)
            added, bad = added + len(rows), bad + sum(row.error is not None for row in rows)
            on_progress(before + added, len(wanted), rows[-1].clip)
        if out.suffix == PARQUET:
            write_parquet(log.rows(), out, features=_size_of_features(how, card))
    bad += sum(known.get(as_text(clip), False) for clip in wanted)
    return Labelled(before, added, bad, time.perf_counter() - started)


def label_here(how: Labelling, clips: Sequence[str]) -> Iterator[list[Row]]:
    """Label clips in this process, in their order; other processes read them."""
    if not clips:
        return
    with how.open() as predictor:
        card, size = predictor.card, predictor.batches.most
        with Readers(card.config, card.preprocessing, how.jobs) as readers:
            read = readers.read(map(Path, clips), ahead=size + 2 * how.jobs)
            for group in in_batches(read, size):
                yield rows_of(predictor, group, how)


def rows_of(predictor: Predictor, clips: Sequence[ReadClip], how: Labelling) -> list[Row]:
    """Run the clips that could be read, and make the row of every clip."""
    top, started = how.classes_of_a_row(predictor.card), time.perf_counter()
    names = (LOGITS,) * bool(top) + (FEATURES,) * how.features
    good = [clip.array for clip in clips if clip.array is not None]
    found = iter(predictor.batches.outputs(good, names))
    share = (time.perf_counter() - started) / max(len(good), 1)
    rows = []
    for clip in clips:
        name = as_text(name_of(clip.source))
        if clip.array is None:
            rows.append(Row(name, error=as_text(clip.error), seconds=round(clip.seconds, 4)))
            continue
        outputs, seconds = next(found), round(clip.seconds + share, 4)
        wrong = [each for each, values in outputs.items() if not np.isfinite(values).all()]
        if wrong:
            why = f"NaN or Inf among the {' and '.join(wrong)} of {predictor.runner.name}"
            rows.append(Row(name, note=as_text(clip.note), error=why, seconds=seconds))
            continue
        best = predictor.rank(name, outputs[LOGITS], top) if top else ()
        classes = tuple(entry.label for entry in best)
        scores = tuple(round(entry.score, _DIGITS) for entry in best)
        features = _shortest(mean_of_views(outputs[FEATURES])) if how.features else None
        rows.append(Row(name, classes, scores, as_text(clip.note), None, seconds, features))
    return rows


def _shortest(values: np.ndarray) -> tuple[float, ...]:
    """Give float32 values as the numbers with the fewest digits that round to them."""
    return tuple(map(float, values.astype(str)))


def _columns(row: Row, how: Labelling) -> dict[str, Any]:
    """Give the columns of a row; features are one only if they are asked for."""
    columns = asdict(row)
    if not how.features:
        del columns["features"]
    return columns


def _size_of_features(how: Labelling, card: Card) -> int | None:
    return int(card.outputs[FEATURES][-1]) if how.features else None


def find_clips(
    given: str | Path | Sequence[str | Path], listed: str | None = None, folder: Path | None = None
) -> list[str]:
    """List the clips of arguments, of folders (with all below them), and of a list.

    Args:
        given: Files and folders, or one.
        listed: A text with a path on each line.
        folder: The folder of the list, where relative paths start.

    Raises:
        UsageError: if there is no clip.
        VideoError: if one of `given` does not exist. A clip of the list that does not exist gets a
            row that says so.
    """
    given = list(one_or_more(given))
    if missing := [str(path) for path in given if not Path(path).exists()]:
        raise VideoError(f"there is no file and no folder {missing[0]}", remedy="check the path")
    clips = [str(clip) for path in given for clip in clips_in(Path(path))]
    # Names may hold what else splitlines() takes for the end of a line.
    lines = [line.strip() for line in (listed or "").split("\n") if line.strip()]
    clips += [str(find_clip(line, folder, "--list")) if folder else line for line in lines]
    if not clips:
        remedy = "tsformer label DIRECTORY CLIP... -o out.jsonl"
        raise UsageError("no clip is given", remedy=remedy)
    return clips


def in_shard(clips: Iterable[str], shard: str) -> list[str]:
    """Keep the clips of shard `i/n`, i from 1 to n; the path of a clip alone decides its shard.

    Raises:
        UsageError: if the shard is not valid.
    """
    parts = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if parts is None:
        raise UsageError("--shard", got=repr(shard), expected="i/n, as in 1/8")
    number, count = map(int, parts.groups())
    if not 1 <= number <= count:
        raise UsageError("--shard", got=shard, expected="i/n with i from 1 to n")
    return [clip for clip in clips if _shard_of(clip, count) == number]


def _shard_of(clip: str, count: int) -> int:
    digest = hashlib.sha256(os.fsencode(clip)).digest()
    return 1 + int.from_bytes(digest[:8], "big") % count


def as_text(path: str) -> str:
    """Write a path or a message that may hold bytes that are no text, as text."""
    return path.encode("utf-8", "backslashreplace").decode()


def _made_by(how: Labelling, card: Card) -> dict[str, Any]:
    """Say what decides the rows; the runtime is not opened, so other machines may continue."""
    made_by = {
        "model": card.hashes.get(card.file_of(how.device)),
        "preprocessing": str(card.preprocessing),
        "task": card.task,
        "labels": list(card.labels),
        "classes_of_a_row": how.classes_of_a_row(card),
    }
    size = _size_of_features(how, card)
    return made_by if size is None else {**made_by, "features_of_a_row": size}
