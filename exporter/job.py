"""One export under way: what is exported, what it is proven on, and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.clips import Inputs, gather_calibration, gather_inputs
from exporter.evaluate import Dataset, open_dataset
from exporter.precision import Ranges, observe_ranges
from exporter.spec import ExportSpec
from exporter.stages import Stage, Stages
from model.classifier import VideoClassifier

# Entered for the time in which latency is measured.
Measuring = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Job:
    """One export under way: what is exported, what it is proven on, and where it goes."""

    spec: ExportSpec
    resolved: dict[str, Any]
    model: VideoClassifier
    inputs: Inputs
    dataset: Dataset | None
    calibration: Inputs | None
    ranges: Ranges | None
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
) -> Job:
    """Read all clips that the export needs, so that a bad one is told before the long stages."""

    def on_clip(name: str) -> None:
        stage.progress(None, name)

    dataset = open_dataset(spec.eval, model) if spec.eval else None
    how = (model.config, model.preprocessing)
    inputs = gather_inputs(spec.video, *how, mask=spec.mask, on_clip=on_clip)
    stage.detail = f"{len(spec.video)} real, {len(inputs.names) - len(spec.video)} synthetic"
    calibration = ranges = None
    if spec.precision == "int8":
        calibration = gather_calibration(spec.calibration, *how, mask=spec.mask, on_clip=on_clip)
        kind = "real" if spec.calibration else "synthetic"
        stage.detail += f"; calibrated on {len(calibration.names)} {kind} clips"
        ranges = observe_ranges(model, calibration.arrays)
    clips = (inputs, dataset, calibration, ranges)
    return Job(spec, resolved, model, *clips, directory, stages, measuring)
