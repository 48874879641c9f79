"""Any module through the stages of an export: ONNX, lint, engine, proof, latency, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from exporter.files.staging import StagedDirectory
from exporter.inputs.module import adapt
from exporter.pipeline import ExportResult, count_parameters, publish, use_threads
from exporter.run.job import Job, Measuring
from exporter.run.stages import OnProgress, Stages, no_progress
from exporter.spec import ExportSpec
from exporter.spec.of_module import check_for_module
from model.classifier import VideoClassifier


def export_module(
    module: nn.Module,
    inputs: Mapping[str, Any],
    out: str | Path,
    spec: ExportSpec | None = None,
    *,
    outputs: Sequence[str] = (),
    force: bool = False,
    on_progress: OnProgress = no_progress,
    measuring: Measuring = nullcontext,
) -> ExportResult:
    """Export any module through the same stages: ONNX, lint, engine, proof, latency, report.

    The module is traced as it is, without rewrites. The graph computes in float32, the truth in
    float64. Every input and output has the batch as its first axis.

    Args:
        module: The module.
        inputs: Arrays or tensors `(n, ...)` of at least 8 samples by name, in the order of its
            forward. The module is proven on these samples; `reference.npz` holds them.
        out: The directory to make.
        spec: Batch, opset, engine and other options that do not describe a model.
        outputs: Names of outputs: keys of what the module gives, or names for its tensors in order
            (default: all keys, `output`, or `output_0`, `output_1`, ...).
        force: As in `export`.
        on_progress: As in `export`.
        measuring: As in `export`.

    Raises:
        TsformerError: if a stage fails, which its class names; nothing is written then.
    """
    check_for_module(spec := spec or ExportSpec())
    spec = replace(spec, rewrite="none")
    stages, out = Stages(on_progress), Path(out)
    with use_threads(spec.threads), StagedDirectory(out, force=force) as staged:
        with stages.run("load") as stage:
            adapted, samples = adapt(module, inputs, outputs)
            model = cast("VideoClassifier", adapted)
            stage.detail = "; ".join((f"{count_parameters(model):,} parameters", *model.notes))
        with stages.run("inputs") as stage:
            stage.detail = f"{len(samples.names)} given"
            resolved = spec.to_dict() | {"batch": spec.run_batch, "opset": spec.graph_opset}
            resolved |= {"notes": list(model.notes), "targets": list(spec.engine_targets)}
            resolved["given"] = True  # the inputs, by the caller
            job = Job(spec, resolved, model, samples, None, None, staged.path, stages, measuring)
        return publish(job, out, staged)
