"""Find where an export loses accuracy, and which modules to keep in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.files.manifest import ENGINE_GRAPH, GRAPH, read_manifest
from exporter.inputs.clips import Inputs, gather_inputs
from exporter.load import load_exported
from exporter.precision import Int8
from exporter.proof.ladder import climb
from exporter.proof.prove import is_costly
from exporter.proof.runtimes import rounding_form
from exporter.proof.tune import tune
from exporter.results import Ladder, Recipe
from exporter.rewrite.choose import rewrite_for_export
from exporter.run.job import calibrate
from exporter.run.stages import OnProgress, no_progress
from exporter.spec import ExportSpec
from model.classifier import VideoClassifier


def ladder(
    directory: str | Path,
    *,
    checkpoint: Path | None = None,
    video: tuple[Path, ...] = (),
    engine: bool = False,
    on_progress: OnProgress = no_progress,
) -> Ladder:
    """Compare the graph of an export with its model, module by module.

    The graph may have been changed after the export: the ladder shows where.

    Args:
        directory: A directory that `export` made.
        checkpoint: The path of its checkpoint, if that was moved.
        video: Clips beside the synthetic inputs.
        engine: Run the graph in TensorRT on the GPU of this machine.
        on_progress: Called after each step.

    Raises:
        NoExportError: if the directory is not an export.
        CheckpointInputError: if the checkpoint is not the one that was exported.
        RuntimeFailure: if `engine` is given and there is no GPU.
        LadderError: if the graph does not name its modules.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, unchanged=False)
    spec, model, inputs = _load(manifest, checkpoint, video, on_progress)
    of_engine = engine and (directory / ENGINE_GRAPH).exists()
    model = rewrite_for_export(spec, model, "tensorrt" if of_engine else None)
    form = rounding_form("tensorrt" if of_engine else "onnxruntime", spec.precision)
    return climb(
        model,
        directory / (ENGINE_GRAPH if of_engine else GRAPH),
        inputs,
        precision=spec.precision,
        batch=spec.run_batch,
        keep_fp32=spec.keep_fp32,
        int8=_rounding(spec, model, spec.precision, form),
        engine=engine,
        on_clip=lambda done, total: on_progress("ladder", done / total, f"{done} of {total} clips"),
    )


def tune_precision(
    directory: str | Path,
    *,
    budget: float,
    precision: str | None = None,
    checkpoint: Path | None = None,
    video: tuple[Path, ...] = (),
    on_progress: OnProgress = no_progress,
) -> Recipe:
    """Find the modules to keep in float32 so that the error of a model meets a budget.

    Args:
        directory: A directory that `export` made.
        budget: Relative L2 of the logits against the float64 truth.
        precision: The lower precision (default: that of the export, or fp16 for an fp32 export).
        checkpoint: The path of its checkpoint, if that was moved.
        video: Clips beside the synthetic inputs.
        on_progress: Called after each step.

    Raises:
        NoExportError: if the directory is not an export.
        CheckpointInputError: if the checkpoint is not the one that was exported.
        TuneError: if no choice meets the budget.
    """
    manifest = read_manifest(Path(directory), unchanged=False)
    spec, model, inputs = _load(manifest, checkpoint, video, on_progress)
    precision = precision or ("fp16" if spec.precision == "fp32" else spec.precision)
    return tune(
        model,
        inputs,
        precision=precision,
        budget=budget,
        int8=_rounding(spec, model, precision, rounding_form("onnxruntime", precision)),
        on_step=lambda done, total, what: on_progress("tune", min(done / total, 1.0), what),
    )


def _rounding(spec: ExportSpec, model: VideoClassifier, precision: str, form: str) -> Int8 | None:
    calibration = calibrate(spec, model, precision)
    return None if calibration is None else Int8.of(form, calibration.ranges)


def _load(
    manifest: dict[str, Any],
    checkpoint: Path | None,
    video: tuple[Path, ...],
    on_progress: OnProgress,
) -> tuple[ExportSpec, VideoClassifier, Inputs]:
    on_progress("load", None, "")
    spec, model = load_exported(manifest, checkpoint, video)
    how, few = (model.config, model.preprocessing), is_costly(model)
    return spec, model, gather_inputs(video, *how, mask=spec.mask, few=few)
