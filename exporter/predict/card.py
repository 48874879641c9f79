"""What a program needs to know of an export to run it: its card, read from the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from exporter.errors import ManifestError, UsageError
from exporter.files.machines import Machines, read_machines
from exporter.files.manifest import ENGINE, GRAPH, MODULE, openvino_graph, read_manifest
from exporter.predict.answers import DEFAULT_TOP
from exporter.spec import BatchProfile
from exporter.spec.checks import check_count
from exporter.spec.option import MOST_CLIPS
from model.config import ClipConfig, ConfigError
from model.outputs import LOGITS
from model.preprocessing import Preprocessing
from model.task import TaskName, assume_task, check_task


@dataclass(frozen=True)
class Card:
    """The entries of a manifest that are needed to run the export.

    Attributes:
        verdict: The verdict at the export.
        precision: The precision of the export.
        config: The sizes of a clip, and the number of classes.
        preprocessing: How a file becomes a clip.
        labels: The names of the classes, or their numbers where no names are known.
        named: Whether the names are known.
        task: What the logits mean.
        dynamic_batch: The range of a free batch; None for a fixed one.
        engine_module: The package that built the engine; None without an engine.
        engine_status: Whether the engine was built, and executed.
        machines: What other machines recorded.
        outputs: The outputs of the graph with their shapes.
        takes_clips: Whether clips are its input; a module of the user takes other inputs.
        hashes: The SHA-256 of each file.
        openvino_graph: The file that OpenVINO runs; None if the export has none.
        keep_fp32: The modules that stay in float32.
    """

    verdict: str
    precision: str
    config: ClipConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    named: bool
    task: TaskName
    dynamic_batch: BatchProfile | None
    engine_module: str | None
    engine_status: str
    machines: Machines
    outputs: Mapping[str, tuple[int | str, ...]]
    takes_clips: bool
    hashes: Mapping[str, str]
    openvino_graph: str | None
    keep_fp32: tuple[str, ...]

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
        takes_clips = manifest["model"]["family"] != MODULE
        if not takes_clips:
            known = {field.name: 0 for field in fields(ClipConfig)}
        config = ClipConfig(**{field.name: int(known[field.name]) for field in fields(ClipConfig)})
        if takes_clips:
            config.check_sizes(headless=True)
        _check_run(manifest["spec"])
        classes = config.num_classes
        labels = tuple(manifest["labels"] or map(str, range(classes)))
        if len(labels) != classes or not all(isinstance(label, str) for label in labels):
            raise ConfigError(f"{len(labels)} labels for {classes} classes")
        profile, engine = manifest["spec"]["dynamic_batch"], manifest["engine"]
        return cls(
            verdict=manifest["verdict"],
            precision=manifest["spec"]["precision"],
            config=config,
            preprocessing=Preprocessing.from_dict(recorded)
            if takes_clips
            else Preprocessing.unit(1),
            labels=labels,
            named=bool(manifest["labels"]),
            # Exports before tasks were known do not say.
            task=check_task(manifest.get("task") or assume_task(classes), classes),
            dynamic_batch=BatchProfile(**profile) if profile else None,
            engine_module=engine.get("flavour"),
            engine_status=engine["status"],
            machines=machines,
            outputs={str(each["name"]): tuple(each["shape"]) for each in manifest["outputs"]},
            takes_clips=takes_clips,
            hashes={name: entry["sha256"] for name, entry in manifest["files"].items()},
            openvino_graph=openvino_graph(manifest),
            keep_fp32=tuple(manifest["spec"]["keep_fp32"]),
        )

    def file_of(self, device: str) -> str:
        """Return the file that a device runs; see `Predictor`."""
        if device.startswith("openvino"):
            return self.openvino_graph or GRAPH
        return ENGINE if device == "engine" else GRAPH

    def reading(self, clip: Mapping[str, Any]) -> Card:
        """Return the card with other entries of its `clip` table: sampling, views and so on.

        Raises:
            UsageError: if an entry is unknown or not valid.
        """
        if not isinstance(clip, Mapping):
            raise UsageError("clip", got=repr(clip), expected='a table, as {"sampling": "uniform"}')
        try:
            return replace(self, preprocessing=self.preprocessing.changed(clip))
        except ConfigError as error:
            raise UsageError(str(error)) from error

    @property
    def has_logits(self) -> bool:
        """Whether the graph gives logits, beside other outputs or alone."""
        return LOGITS in self.outputs

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


def _check_run(spec: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless the entries that decide a run are of their kind."""
    sizes = {"batch": spec["batch"]} | dict(spec["dynamic_batch"] or {})
    for name, size in sizes.items():
        if not isinstance(size, int) or not 1 <= size <= MOST_CLIPS:
            raise ConfigError(f"{name}: got {size!r}, expected 1 to {MOST_CLIPS:,}")
    for name in ("runtimes", "keep_fp32"):  # exports before OpenVINO do not have the first
        if not isinstance(spec.get(name, []), list | tuple):
            raise ConfigError(f"{name}: got {spec[name]!r}, expected a list")


def check_top(card: Card, top: int | None) -> int:
    """Return how many classes to give: the wanted number, or the default.

    Raises:
        UsageError: if the model has fewer classes, gives values, or no logits.
    """
    if not card.has_logits:
        raise UsageError(
            f"the export gives no classes, but {', '.join(card.outputs)}",
            remedy="write them to a file: tsformer predict or label with --features",
        )
    classes = len(card.labels)
    if top is None:
        return min(DEFAULT_TOP, classes)
    if card.task == "regression":
        raise UsageError("--top ranks classes, and this model gives values: omit --top")
    check_count("--top", top, most=classes)
    return top
