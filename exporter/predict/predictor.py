"""A directory that `export` made -> the classes of clips, with numpy, ONNX Runtime and PyAV only.

    with Predictor("build/mine") as predictor:
        for prediction in predictor.predict(["clip.mp4"]):
            print(prediction.clip, prediction.classes[0].label, prediction.classes[0].score)

The same code reads clips here and for the export, so the proof holds for the predictions.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import ManifestError, RuntimeFailure, TsformerError, UsageError
from exporter.files.manifest import ENGINE, GRAPH, require_file
from exporter.inputs.clip_list import one_or_more
from exporter.inputs.clips import read_for
from exporter.inputs.windows import Windows, read_windows
from exporter.machine.cores import usable_cores
from exporter.predict.answers import order_of, scores_of
from exporter.predict.batches import Batches, in_groups
from exporter.predict.card import Card, check_top
from exporter.runners.base import Closing, Runner
from exporter.runners.onnxruntime_cuda import open_onnxruntime
from exporter.runners.openvino import WITH_BF16, OpenVinoRunner
from exporter.runners.tensorrt import TensorRtRunner
from exporter.spec.checks import check_count
from exporter.spec.option import MOST_CLIPS
from exporter.to_engine.flavours import FLAVOUR_OF_MODULE

OPENVINO = (OpenVinoRunner.name, WITH_BF16)
DEVICES = ("cpu", "cuda", "engine", *OPENVINO)


@dataclass(frozen=True)
class ClassScore:
    """One class: its index among the logits, its label (or the index), and its score.

    The score is the softmax of a class, the sigmoid of a label of several, or the value of a
    regression: see `Card.task`.
    """

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The best classes of one clip, best first; `note` names damage and repeated frames.

    `error` says why a clip has no classes; it is empty for a clip that could be read.
    """

    clip: str
    note: str
    classes: tuple[ClassScore, ...]
    error: str = ""


@dataclass(frozen=True)
class WindowPrediction(Prediction):
    """The best classes of one window of a clip.

    `start` and `end` are in seconds from the first frame; a window that the source does not fill
    ends where its last frame ends. `lag` is the time from the end of the window at a live source
    until its answer, in seconds; None for a file. `held_mb` is the memory of the decoded frames of
    the window.
    """

    start: float = 0.0
    end: float = 0.0
    lag: float | None = None
    held_mb: float = 0.0


class Predictor(Closing):
    """An exported model, ready to classify clips.

    Args:
        directory: A directory that `export` made.
        device: `cpu` and `cuda` run `model.onnx` in ONNX Runtime, `engine` the TensorRT engine,
            `openvino` the graph for OpenVINO. `openvino-bf16`: int8 products, bf16 between them.
        threads: Threads on the CPU (default: one for each core).
        batch: Clips of one run (default: as many as the model takes).
        cache: A folder in which OpenVINO keeps the compiled model, to load it faster next time.
        clip: How clips are read, in place of what the export says: `sampling` and `views`, as texts
            or as in a `clip` table.

    Raises:
        NoExportError: if the directory is not an export.
        ManifestError: if a file was changed, or the file to run is missing.
        RuntimeFailure: if the runtime does not load the model, or needs a GPU and there is none.
        UsageError: if the device is unknown, `threads` is not 1 to 512, or the model does not take
            the batch.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        batch: int | None = None,
        cache: str | Path | None = None,
        clip: Mapping[str, Any] | None = None,
    ) -> None:
        check_count("--threads", threads)
        if device not in DEVICES:
            raise UsageError("--device", got=device, expected=f"one of {', '.join(DEVICES)}")
        if cache is not None and device not in OPENVINO:
            raise UsageError("--cache is for --device openvino", got=device)
        threads = threads or usable_cores() or 1
        directory = Path(directory)
        card = Card.read(directory)
        if not card.takes_clips:
            what = f"{directory} is the export of a module, which does not take clips"
            raise UsageError(what, remedy="run its model.onnx in ONNX Runtime")
        self.card = card = card.reading(clip or {})
        self.file = card.file_of(device)  # what is run
        self.runner: Runner
        if device == "engine":
            self.runner = _load_engine(directory, card)
        elif device in OPENVINO:
            self.runner = _load_openvino(directory, card, device, threads, cache)
        else:
            require_file(directory, GRAPH)
            self.runner = open_onnxruntime(
                directory / GRAPH, device, threads=threads, precision=card.precision
            )
        with ExitStack() as undo:
            undo.callback(self.close)
            _check_sizes(directory, card, self.runner)
            self.batches = _batches(card, self.runner, device, batch)
            undo.pop_all()

    def close(self) -> None:  # noqa: D102
        self.runner.__exit__(None, None, None)

    def predict(
        self,
        clips: str | Path | Iterable[str | Path],
        top: int | None = None,
        *,
        keep_going: bool = False,
    ) -> Iterator[Prediction]:
        """Classify clips, as many at a time as the model takes.

        Args:
            clips: Video files, or one.
            top: How many classes to give, best first (default 5, or all if there are fewer). A
                regression gives all its values, in their order.
            keep_going: Give a prediction with an `error` for a clip that cannot be read.

        Raises:
            UsageError: if the model has fewer classes, or gives no logits.
            VideoError: if a clip cannot be read, unless `keep_going`.
            RuntimeFailure: if the runtime fails, or a logit is not finite.
        """
        given = iter(one_or_more(clips))
        return self._predict(given, check_top(self.card, top), keep_going=keep_going)

    def _predict(
        self, clips: Iterator[str | Path], top: int, *, keep_going: bool
    ) -> Iterator[Prediction]:
        for group in in_groups(clips, self.batches.most):
            found: dict[int, Prediction] = {}
            read = []
            for place, path in enumerate(group):
                try:
                    clip = read_for(self.card.config, self.card.preprocessing, Path(path))
                except TsformerError as error:
                    if not keep_going:
                        raise
                    found[place] = Prediction(str(path), "", (), str(error))
                else:
                    read.append((place, clip))
            logits = self.batches.logits([clip.array for _, clip in read])
            for (place, clip), rows in zip(read, logits, strict=True):
                classes = self.rank(str(group[place]), rows, top)
                found[place] = Prediction(str(group[place]), clip.note, classes)
            yield from (found[place] for place in range(len(group)))

    def predict_windows(
        self, source: str, windows: Windows, top: int | None = None
    ) -> Iterator[WindowPrediction]:
        """Classify one window of a source after the other, each as soon as it is complete.

        Args:
            source: A file, a pipe (`pipe:0` is standard input), a device or a URL that PyAV opens.
            windows: The length of a window, and from one window to the next.
            top: As for `predict`.

        Raises:
            UsageError: if the model has fewer classes, or gives no logits.
            VideoError: if the source cannot be read.
            RuntimeFailure: if the runtime fails, or a logit is not finite.
        """
        card, top = self.card, check_top(self.card, top)
        for window in read_windows(source, windows, card.config, card.preprocessing):
            read = time.monotonic()
            (rows,) = self.batches.logits([window.clip.array])
            classes = self.rank(source, rows, top)
            lag = None if window.lag is None else window.lag + time.monotonic() - read
            yield WindowPrediction(
                source,
                window.clip.note,
                classes,
                start=window.start,
                end=window.end,
                lag=lag,
                held_mb=window.held_mb,
            )

    def rank(self, clip: str, logits: np.ndarray, top: int) -> tuple[ClassScore, ...]:
        """Give the best classes of one clip, from the logits `(v, classes)` of its views.

        Raises:
            RuntimeFailure: if a logit is not finite.
        """
        if not np.isfinite(logits).all():
            raise RuntimeFailure(f"{clip}: NaN or Inf among the logits of {self.runner.name}")
        views = self.card.preprocessing.views
        scores = scores_of(logits, self.card.task, views.average)
        return tuple(
            ClassScore(int(place), self.card.labels[place], float(scores[place]))
            for place in order_of(scores, self.card.task, top)
        )


def _batches(card: Card, runner: Runner, device: str, wanted: int | None) -> Batches:
    """Find the batches that the model takes: a graph accepts any, an engine only its profile."""
    fixed, profile = runner.input_shapes["video"][0], card.dynamic_batch
    least = most = fixed or 1
    if profile and not fixed:
        least, most = profile.min if device == "engine" else 1, profile.max
    check_count("--batch", wanted, most=MOST_CLIPS)
    if wanted is not None and not least <= wanted <= most:
        expected = f"{least} to {most}" if least < most else f"{least}, the batch of the export"
        raise UsageError("--batch", got=wanted, expected=expected)
    return Batches(runner, least, wanted or most)


def _check_sizes(directory: Path, card: Card, runner: Runner) -> None:
    """Raise unless clips have the shape of the graph's input: the manifest has no hash itself."""
    size = card.config
    axes = (size.frames, size.channels, size.height, size.width)
    if card.preprocessing.embedded:
        axes = (size.frames, size.height, size.width, size.channels)
    if runner.input_shapes.get("video", ())[1:] != axes:
        raise ManifestError(
            f"the manifest of {directory} is damaged: its clips do not fit {runner.name}",
            got=axes,
            expected=dict(runner.input_shapes),
        )


def _load_openvino(
    directory: Path, card: Card, device: str, threads: int, cache: str | Path | None
) -> OpenVinoRunner:
    if device == WITH_BF16 and card.precision != "int8":
        remedy = f"--device {OpenVinoRunner.name} computes in the precision of the export"
        raise UsageError(f"--device {device} is for int8", got=card.precision, remedy=remedy)
    if card.openvino_graph is None:
        remedy = "export it again with --for openvino"
        raise UsageError(f"{directory} has no graph for OpenVINO", remedy=remedy)
    require_file(directory, card.openvino_graph)
    return OpenVinoRunner(
        directory / card.openvino_graph,
        card.precision,
        threads=threads,
        rest="bf16" if device == WITH_BF16 else "fp32",
        keep_fp32=card.keep_fp32,
        cache=Path(cache) if cache else None,
    )


def _load_engine(directory: Path, card: Card) -> TensorRtRunner:
    if card.engine_module is None:
        remedy = "predict with --device cpu or cuda, or export it again with --engine auto"
        raise UsageError(f"{directory} has no engine", remedy=remedy)
    flavour = FLAVOUR_OF_MODULE.get(card.engine_module)
    if flavour is None:
        raise ManifestError(f"the engine of {directory} was built by {card.engine_module!r}")
    require_file(directory, ENGINE)
    return TensorRtRunner(directory / ENGINE, flavour, card.precision)
