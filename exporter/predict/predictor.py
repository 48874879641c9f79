"""A directory that `export` made -> the classes of clips, with numpy, ONNX Runtime and PyAV only.

    with Predictor("build/mine") as predictor:
        for prediction in predictor.predict(["clip.mp4"]):
            print(prediction.clip, prediction.classes[0].label, prediction.classes[0].score)

The same code reads clips here and for the export: it samples, resizes, crops and normalises them.
So the proof of the export holds for the predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import ManifestError, RuntimeFailure, UsageError
from exporter.files.machines import Machines, read_machines
from exporter.files.manifest import ENGINE, GRAPH, read_manifest, require_file
from exporter.inputs.clips import read_for
from exporter.inputs.video import Clip
from exporter.machine.cores import usable_cores
from exporter.runners.base import Closing, Runner
from exporter.runners.onnxruntime_cuda import open_onnxruntime
from exporter.runners.tensorrt import TensorRtRunner
from exporter.spec import BatchProfile
from exporter.to_engine.build import FLAVOUR_OF_MODULE
from model.config import ClipConfig, ConfigError
from model.outputs import LOGITS
from model.preprocessing import Preprocessing

DEVICES = ("cpu", "cuda", "engine")
DEFAULT_TOP = 5


@dataclass(frozen=True)
class ClassScore:
    """One class: its index among the logits, its label (or the index), its softmax."""

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The best classes of one clip, best first; `note` names damage and repeated frames."""

    clip: str
    note: str
    classes: tuple[ClassScore, ...]


@dataclass(frozen=True)
class Card:
    """The entries of a manifest that are needed to run the export.

    `dynamic_batch` is the range of a free batch. `engine_module` is the package that built the
    engine; None without an engine. `machines` is what other machines recorded. `outputs` are the
    outputs of the graph.
    """

    verdict: str
    precision: str
    config: ClipConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    dynamic_batch: BatchProfile | None
    engine_module: str | None
    engine_status: str
    machines: Machines
    outputs: tuple[str, ...]

    @classmethod
    def read(cls, directory: Path) -> Card:
        """Read the card of a directory, after a check of the files that are there.

        Raises:
            NoExportError: if the directory is not an export.
            ManifestError: if a file was changed, or the manifest is damaged.
        """
        return cls.of(directory, read_manifest(directory))

    @classmethod
    def of(cls, directory: Path, manifest: Mapping[str, Any]) -> Card:
        """Take the card of a directory from its manifest.

        Raises:
            ManifestError: if the manifest is damaged.
        """
        try:
            return cls._from_manifest(manifest, read_machines(directory, manifest))
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise ManifestError(
                f"the manifest of {directory} is damaged: {error!r}", remedy="export it again"
            ) from error

    @classmethod
    def _from_manifest(cls, manifest: Mapping[str, Any], machines: Machines) -> Card:
        known, recorded = manifest["model"]["config"], manifest["preprocessing"]
        config = ClipConfig(**{field.name: int(known[field.name]) for field in fields(ClipConfig)})
        classes = config.num_classes
        labels = tuple(manifest["labels"] or map(str, range(classes)))
        if len(labels) != classes or not all(isinstance(label, str) for label in labels):
            raise ConfigError(f"{len(labels)} labels for {classes} classes")
        profile, engine = manifest["spec"]["dynamic_batch"], manifest["engine"]
        return cls(
            verdict=manifest["verdict"],
            precision=manifest["spec"]["precision"],
            config=config,
            preprocessing=Preprocessing.from_dict(recorded),
            labels=labels,
            dynamic_batch=BatchProfile(**profile) if profile else None,
            engine_module=engine.get("flavour"),
            engine_status=engine["status"],
            machines=machines,
            outputs=tuple(str(output["name"]) for output in manifest["outputs"]),
        )

    @property
    def doubt(self) -> str:
        """Why the engine is not proven, in one clause; "" if it is."""
        judged = self.machines.judged(ENGINE)
        wrong = [name for name, row in judged if row.verdict != "pass"]
        if wrong:
            return f"the engine failed its proof on {', '.join(wrong)}"
        if judged or self.engine_status == "built and executed":
            return ""
        return "the engine was never proven"


class Predictor(Closing):
    """An exported model, ready to classify clips.

    Args:
        directory: A directory that `export` made.
        device: `cpu` and `cuda` run `model.onnx` in ONNX Runtime, `engine` the TensorRT engine.
        threads: Threads of ONNX Runtime (default: one for each core).

    Raises:
        NoExportError: if the directory is not an export.
        ManifestError: if a file was changed, or the file to run is missing.
        RuntimeFailure: if the runtime does not load the model, or needs a GPU and there is none.
        UsageError: if the device is unknown, or `threads` is less than 1.
    """

    def __init__(
        self, directory: str | Path, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError("--threads", got=threads, expected="at least 1")
        if device not in DEVICES:
            raise UsageError("--device", got=device, expected=f"one of {', '.join(DEVICES)}")
        engine = device == "engine"
        directory = Path(directory)
        self.card = card = Card.read(directory)
        self.runner: Runner
        if engine:
            self.runner = _load_engine(directory, card)
        else:
            require_file(directory, GRAPH)
            threads = threads or usable_cores() or 1
            self.runner = open_onnxruntime(
                directory / GRAPH, device, threads=threads, precision=card.precision
            )
        _check_sizes(directory, card, self.runner)
        fixed, profile = self.runner.input_shapes["video"][0], card.dynamic_batch
        self._least = self._most = fixed or 1
        if profile and not fixed:  # a graph accepts any batch, an engine only its profile
            self._least, self._most = profile.min if engine else 1, profile.max

    def close(self) -> None:  # noqa: D102
        self.runner.__exit__(None, None, None)

    def predict(self, clips: Iterable[str | Path], top: int | None = None) -> Iterator[Prediction]:
        """Classify clips, as many at a time as the model takes.

        Args:
            clips: Video files.
            top: How many classes to give, best first (default 5, or all if there are fewer).

        Raises:
            UsageError: if the model has fewer classes, or gives no logits.
            VideoError: if a clip cannot be read.
            RuntimeFailure: if the runtime fails, or a logit is not finite.
        """
        if LOGITS not in self.card.outputs:
            raise UsageError(
                f"the export gives no classes, but {', '.join(self.card.outputs)}",
                remedy="write them to a file: tsformer predict DIRECTORY CLIP --features out.npz",
            )
        classes = len(self.card.labels)
        top = min(DEFAULT_TOP, classes) if top is None else top
        if not 1 <= top <= classes:
            raise UsageError("--top", got=top, expected=f"1 to {classes}, the classes of the model")
        return self._predict(iter(clips), top)

    def _predict(self, clips: Iterator[str | Path], top: int) -> Iterator[Prediction]:
        while chunk := list(islice(clips, self._most)):
            how = (self.card.config, self.card.preprocessing)
            read = [read_for(*how, Path(clip)) for clip in chunk]
            for path, clip, logits in zip(chunk, read, self._run(read), strict=True):
                yield Prediction(str(path), clip.note, self._rank(path, logits, top))

    def _run(self, clips: Sequence[Clip]) -> np.ndarray:
        """Compute logits `(n, classes)` of n clips; the last clip fills up the smallest batch."""
        missing = max(self._least - len(clips), 0)
        video = np.concatenate([clip.array for clip in [*clips, *[clips[-1]] * missing]])
        inputs = {"video": video}
        if "mask" in self.runner.input_shapes:
            inputs["mask"] = np.ones(video.shape[:2], bool)  # look at every frame
        return self.runner.run(inputs)[LOGITS][: len(clips)]

    def _rank(self, clip: str | Path, logits: np.ndarray, top: int) -> tuple[ClassScore, ...]:
        if not np.isfinite(logits).all():
            raise RuntimeFailure(f"{clip}: NaN or Inf among the logits of {self.runner.name}")
        scores = softmax(logits)
        best = np.argsort(-scores, kind="stable")[:top]
        return tuple(ClassScore(int(i), self.card.labels[i], float(scores[i])) for i in best)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute `exp(x_i) / sum_j exp(x_j)` over the last axis, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


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


def _load_engine(directory: Path, card: Card) -> TensorRtRunner:
    if card.engine_module is None:
        raise UsageError(
            f"{directory} has no engine",
            remedy="predict with --device cpu or cuda, or export it again with --engine auto",
        )
    flavour = FLAVOUR_OF_MODULE.get(card.engine_module)
    if flavour is None:
        raise ManifestError(f"the engine of {directory} was built by {card.engine_module!r}")
    require_file(directory, ENGINE)
    return TensorRtRunner(directory / ENGINE, flavour, card.precision)
