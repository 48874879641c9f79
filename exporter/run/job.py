"""The state of a running export: its model, its clips and its stages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.inputs.clips import Inputs, gather_calibration, gather_inputs
from exporter.inputs.dataset import Dataset, open_dataset
from exporter.precision import Ranges, observe_ranges
from exporter.run.stages import Stage, Stages
from exporter.spec import ExportSpec
from model.classifier import VideoClassifier

# A context that is entered while latency is measured.
Measuring = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Calibration:
    """The calibration clips of an int8 graph, and the ranges of the activations on them."""

    clips: Inputs
    ranges: Ranges


@dataclass(frozen=True)
class Job:
    """A running export: the model, the clips to prove it on, and the output directory."""

    spec: ExportSpec
    resolved: dict[str, Any]
    model: VideoClassifier
    inputs: Inputs
    dataset: Dataset | None
    calibration: Calibration | None
    directory: Path
    stages: Stages
    measuring: Measuring


def gather(
    spec: ExportSpec,
    resolved: dict[str, Any],
    model: VideoClassifier,
    directory: Path,
    stages: Stages,
    stage: Stage,
    measuring: Measuring,
    *,
    few: bool,
) -> Job:
    """Read all clips of the export now, so that a bad clip fails before the long stages.

    `few` chooses the synthetic clips, as for `gather_inputs`.
    """

    def on_clip(name: str) -> None:
        stage.progress(None, name)

    dataset = None
    if spec.eval:
        dataset = open_dataset(spec.eval, model.task, model.config, model.labels)
    how = (model.config, model.preprocessing)
    inputs = gather_inputs(spec.video, *how, mask=spec.mask, few=few, on_clip=on_clip)
    stage.detail = f"{len(spec.video)} real, {len(inputs.names) - len(spec.video)} synthetic"
    calibration = calibrate(spec, model, spec.precision, on_clip)
    if calibration:
        kind = "real" if spec.calibration else "synthetic"
        stage.detail += f"; calibrated on {len(calibration.clips.names)} {kind} clips"
    return Job(
        spec=spec,
        resolved=resolved,
        model=model,
        inputs=inputs,
        dataset=dataset,
        calibration=calibration,
        directory=directory,
        stages=stages,
        measuring=measuring,
    )


def calibrate(
    spec: ExportSpec,
    model: VideoClassifier,
    precision: str,
    on_clip: Callable[[str], None] = lambda name: None,
) -> Calibration | None:
    """Observe the activations of a model on the calibration clips, if the precision is int8.

    Raises:
        VideoError: if a calibration clip cannot be read.
    """
    if precision != "int8":
        return None
    how = (model.config, model.preprocessing)
    clips = gather_calibration(spec.calibration, *how, mask=spec.mask, on_clip=on_clip)
    return Calibration(clips, observe_ranges(model, clips.arrays))
