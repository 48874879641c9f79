"""The stages: load, inputs, rewrite, onnx, engine, parity, ladder, accuracy, latency, report.

What each works on is a `Job`; `candidates` knows the runtimes.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from exporter.errors import RuntimeFailure
from exporter.files.manifest import read_manifest, write_manifest
from exporter.files.names import default_directory
from exporter.files.staging import StagedDirectory
from exporter.inputs.clips import gather_inputs
from exporter.latency.timing import against_limit, measure_limit, time_runners
from exporter.load import load_exported, load_model, resolve
from exporter.machine import environment
from exporter.machine.contention import Contention
from exporter.precision import Int8, kept_modules, observe_ranges
from exporter.proof.accuracy import evaluate
from exporter.proof.ladder import climb
from exporter.proof.prove import prove, rewrite_proven
from exporter.report import write_report
from exporter.results import Accuracy, Ladder, Parity, Report, Verdict, overall_verdict
from exporter.rewrite import Rewritten
from exporter.run import Calibration, Job, Measuring, OnProgress, Stage, Stages, calibrate, gather
from exporter.runners.base import Runner
from exporter.runners.eager import EagerRunner
from exporter.runners.open import load_engine, load_onnx, load_symmetric
from exporter.spec import ExportSpec
from exporter.to_engine.build import FLAVOURS, EngineInfo, build_engine, choose_flavour
from exporter.to_engine.progress import BuildProgress
from exporter.to_onnx.export import OnnxGraph, check_onnx
from exporter.to_onnx.graphs import Graphs, make_graphs
from model.classifier import VideoClassifier


@dataclass(frozen=True)
class ExportResult:
    """Where the export lies, what it is, and whether it is proven to be the same model."""

    directory: Path
    report: Report
    verdict: Verdict


def export(
    spec: ExportSpec,
    out: str | Path | None = None,
    *,
    force: bool = False,
    on_progress: OnProgress = lambda _stage, _fraction, _what: None,
    measuring: Measuring = nullcontext,
) -> ExportResult:
    """Run the whole line; the directory appears whole or not at all.

    Args:
        spec: What to export.
        out: The directory to make; named after the spec under `build/` unless given.
        force: Replace an earlier export in that place.
        on_progress: Told what is being done.
        measuring: Entered while latency is measured, so that nothing else need run meanwhile; it
            may give PyTorch other threads, which the runtimes that are timed then have too.

    Returns:
        The result; its `verdict` must be looked at: an export that failed parity is delivered with
        its report, so that it can be examined.

    Raises:
        TsformerError: its class says which stage failed and why; nothing is left behind.
    """
    stages = Stages(on_progress)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    out = Path(out or default_directory(spec))
    with StagedDirectory(out, force=force) as staged:
        with stages.run("load") as stage:
            model = load_model(spec)
            resolved = resolve(spec, model)  # now: it hashes the checkpoint that was just read
            kept_modules(model, spec.keep_fp32)
            stage.detail = f"{_count_parameters(model):,} parameters"
        with stages.run("inputs") as stage:
            job = gather(spec, resolved, model, staged.path, stages, stage, measuring)
        with stages.run("rewrite") as stage:
            rewritten = rewrite_proven(job, stage)
        with ExitStack() as resources:
            report = _produce(job, rewritten, resources)
        with stages.run("report"):
            write_report(report, staged.path)
        report = replace(report, stages=tuple(stages.done))
        write_report(report, staged.path)
        write_manifest(
            staged.path,
            report,
            model={"family": model.family, "config": asdict(model.config)},
            preprocessing=model.preprocessing,
            labels=model.labels,
        )
        staged.publish()
    return ExportResult(out, report, overall_verdict(report.parity))


def verify(
    directory: str | Path,
    *,
    checkpoint: Path | None = None,
    video: tuple[Path, ...] = (),
    on_progress: OnProgress = lambda _stage, _fraction, _what: None,
) -> Report:
    """Prove an exported directory again with every runtime of this machine; nothing is written.

    Where there is a GPU, an engine that cannot be executed on it is an error: judging it is what
    this is for.

    Args:
        directory: What `export` made.
        checkpoint: Where its checkpoint lies now, if it was moved.
        video: Clips beside the synthetic inputs.
        on_progress: Told what is being done.

    Raises:
        NoExportError: if it is no export.
        ManifestError: if it is not whole, or a file of it was changed.
        CheckpointInputError: if the checkpoint is not the one that was exported.
    """
    directory, stages = Path(directory), Stages(on_progress)
    manifest = read_manifest(directory)
    with stages.run("load"):
        spec, model = load_exported(manifest, checkpoint, video)
    with stages.run("inputs"):
        inputs = gather_inputs(video, model.config, model.preprocessing, mask=spec.mask)
        calibration = calibrate(spec, model, spec.precision)
    with ExitStack() as runners, stages.run("parity") as stage:
        candidates, absences = load_onnx(directory / "model.onnx", spec.precision, runners)
        module = manifest["engine"].get("flavour")
        runner, absence = load_engine(module, directory / "model.engine", spec.precision, runners)
        if absence and torch.cuda.is_available():
            raise RuntimeFailure(absence.reason)
        candidates += [runner] if runner else []
        absences += [absence] if absence else []
        parity = prove(spec, model, inputs, calibration, candidates, stage) + absences
    return Report(
        spec=resolve(spec, model),
        environment=environment.describe(),
        stages=tuple(stages.done),
        parity=tuple(parity),
        latency=(),
        engine=_engine_here(manifest["engine"], executed=runner is not None),
        graph=asdict(check_onnx(directory / "model.onnx")),
    )


def _produce(job: Job, rewritten: Rewritten, resources: ExitStack) -> Report:
    spec, stages = job.spec, job.stages
    with stages.run("onnx") as stage:
        graphs = make_graphs(job, rewritten.model, resources)
        candidates, absences = load_onnx(graphs.onnx, spec.precision, resources)
        if graphs.for_engine != graphs.onnx:
            candidates.append(load_symmetric(graphs.for_engine, spec.precision, resources))
        graph = check_onnx(graphs.onnx)
        stage.detail = f"{graph.nodes} nodes, opset {graph.opset}, {graph.file_bytes / 1e6:.1f} MB"
    engine_path = job.directory / "model.engine"
    with stages.run("engine") as stage:
        engine = _build_engine(spec, graphs.for_engine, engine_path, stage)
        stage.peak_memory_mb = (engine and engine.peak_memory_mb) or 0.0
    flavour = FLAVOURS[engine.flavour].module if engine else None
    engine_runner, absence = load_engine(flavour, engine_path, spec.precision, resources)
    candidates += [engine_runner] if engine_runner else []
    absences += [absence] if absence else []
    with stages.run("parity") as stage:
        parity = prove(spec, job.model, job.inputs, job.calibration, candidates, stage) + absences
    ladder = _climb(job, rewritten.model, graphs.onnx, parity)
    accuracy = _evaluate(job, candidates)
    with job.measuring(), stages.run("latency") as stage, Contention() as contention:
        latency = time_runners(job, candidates, graphs.fp32, stage)
        cost, limit = measure_limit(spec, graphs.onnx)
        latency = [against_limit(row, cost, limit) for row in latency]
    facts = environment.describe() | {
        "threads": torch.get_num_threads(),
        "cores_busy_with_others": contention.cores,
        "limit": asdict(limit),
    }
    return Report(
        spec=job.resolved,
        environment=facts,
        stages=tuple(stages.done),
        parity=tuple(parity),
        latency=tuple(latency),
        engine=_engine_facts(engine, stages, executed=engine_runner is not None),
        graph=_graph_facts(graph, graphs, job)
        | {"flops": cost.flops // spec.run_batch, "bytes": cost.bytes // spec.run_batch}
        | {
            "rewrites": [asdict(entry) for entry in rewritten.fired],
            "rewrites_refused": [asdict(entry) for entry in rewritten.refused],
        },
        accuracy=tuple(accuracy),
        ladder=ladder,
    )


def _build_engine(
    spec: ExportSpec, onnx_path: Path, engine_path: Path, stage: Stage
) -> EngineInfo | None:
    choice = choose_flavour(spec.engine, gpu=torch.cuda.is_available())
    stage.detail = choice.reason
    if choice.flavour is None:
        stage.skipped = True
        return None

    def report(progress: BuildProgress) -> None:
        stage.progress(progress.fraction, progress.phase)

    return build_engine(
        onnx_path,
        engine_path,
        flavour=choice.flavour,
        profile=spec.dynamic_batch,
        targets=spec.engine_targets if FLAVOURS[choice.flavour].takes_targets else (),
        on_progress=report,
    )


def _climb(
    job: Job, rewritten: VideoClassifier, graph: Path, parity: list[Parity]
) -> Ladder | None:
    """The error module by module, where there is something to explain."""
    spec = job.spec
    if spec.precision == "fp32" and overall_verdict(parity) != "fail":
        return None
    with job.stages.run("ladder") as stage:
        shown = job.inputs.chosen(job.inputs.names[0], "checkerboard")
        found = climb(
            rewritten,
            graph,
            shown,
            precision=spec.precision,
            batch=spec.run_batch,
            keep_fp32=spec.keep_fp32,
            int8=_int8_of(rewritten, job.calibration),
            on_clip=lambda done, total: stage.progress(done / total, "module by module"),
        )
        stage.detail = f"{len(found.rungs)} modules on {', '.join(shown.names)}"
    return found


def _int8_of(model: VideoClassifier, calibration: Calibration | None) -> Int8 | None:
    return calibration and Int8(observe_ranges(model, calibration.clips.arrays))


def _evaluate(job: Job, candidates: list[Runner]) -> list[Accuracy]:
    if job.dataset is None:
        return []
    with (
        job.stages.run("accuracy") as stage,
        EagerRunner(job.model, job.inputs.shapes) as eager,
    ):
        stage.detail = f"{job.dataset.count} clips of {job.dataset.name}"
        return evaluate([eager, *candidates], job.dataset, job.spec.run_batch)


def _engine_facts(engine: EngineInfo | None, stages: Stages, *, executed: bool) -> dict[str, Any]:
    if engine is None:
        reason = next(stage.detail for stage in stages.done if stage.name == "engine")
        return {"status": "not built", "reason": reason}
    facts = asdict(engine) | {"flavour": FLAVOURS[engine.flavour].module}
    return _engine_here(facts, executed=executed)


def _engine_here(facts: dict[str, Any], *, executed: bool) -> dict[str, Any]:
    """The facts of an engine, with what this machine did with it."""
    if "flavour" not in facts:
        return facts
    return facts | {"status": "built and executed" if executed else "built, not executed"}


def _graph_facts(graph: OnnxGraph, graphs: Graphs, job: Job) -> dict[str, Any]:
    used = zip(job.inputs.names, job.inputs.notes, strict=True)
    facts = asdict(graph) | {
        "casts": graph.ops.get("Cast", 0),
        "inputs_used": [{"name": name, "note": note} for name, note in used],
        "peak_memory_mb": max(stage.peak_memory_mb or 0.0 for stage in job.stages.done),
    }
    if graphs.fp32 is not None and job.calibration is not None:
        facts["quantized"] = graphs.quantized
        facts["fp32_bytes"] = graphs.fp32.stat().st_size
        facts["calibration"] = list(job.calibration.clips.names)
    return facts


def _count_parameters(model: VideoClassifier) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
