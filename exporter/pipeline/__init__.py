"""The stages: load, inputs, rewrite, onnx, engine, parity, ladder, accuracy, latency, report.

A `Job` holds the model and the clips, `Opened` the runtimes. The stage `ladder` runs only if a
runtime did not pass with room, the stage `accuracy` only with labelled clips.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exporter.files.manifest import ENGINE, write_manifest
from exporter.files.names import default_directory
from exporter.files.reference import require_room
from exporter.files.staging import StagedDirectory
from exporter.inputs.dataset import MOTION
from exporter.latency.timing import Timed, measure_latency
from exporter.load import in_threads, load_model, resolve
from exporter.machine import environment
from exporter.machine.cores import usable_cores
from exporter.machine.memory import require_addresses
from exporter.pipeline.accuracy import measure_accuracy
from exporter.precision import kept_modules
from exporter.proof.prove import (
    explain,
    is_costly,
    keep_references,
    make_references,
    make_structures,
    rewrite_proven,
)
from exporter.proof.runtimes import judge_runtimes
from exporter.proof.structure import judge_structures
from exporter.report import write_report
from exporter.results import Parity, Report, Verdict, overall_verdict, passed_with_room
from exporter.run.job import Job, Measuring, gather
from exporter.run.sheets import make_sheets
from exporter.run.stages import OnProgress, Stage, Stages, no_progress
from exporter.runners.cuda import look_for_gpu
from exporter.runners.eager import TruthRunner
from exporter.runners.open import Opened, load_engine, load_graphs
from exporter.spec import ExportSpec
from exporter.target.model_card import write_model_card
from exporter.target.runtimes import open_for_openvino, other_targets
from exporter.target.verify import engine_here
from exporter.to_engine.build import Building, EngineInfo
from exporter.to_engine.flavours import FLAVOURS, choose_flavour
from exporter.to_engine.progress import BuildProgress
from exporter.to_onnx.graphs import graph_facts, make_engine_graph, make_graphs


@dataclass(frozen=True)
class ExportResult:
    """The directory of an export, its report, and whether it is proven to be the same model."""

    directory: Path
    report: Report
    verdict: Verdict


def export(
    spec: ExportSpec,
    out: str | Path | None = None,
    *,
    force: bool = False,
    on_progress: OnProgress = no_progress,
    measuring: Measuring = nullcontext,
) -> ExportResult:
    """Run all stages; the directory appears complete or not at all.

    Args:
        spec: What to export.
        out: The directory to make (default: named after the spec, under `build/`).
        force: Replace an earlier export there, with all that its directory holds.
        on_progress: Called while the stages run.
        measuring: A context that is entered while latency is measured, to keep the machine free.
            It may change PyTorch's number of threads; the runtimes then use the same number.

    Returns:
        The result. Check its `verdict`: an export that failed parity is written too, so that its
        report can be read.

    Raises:
        TsformerError: if a stage fails, which its class names; nothing is written then.
    """
    require_addresses()
    stages = Stages(on_progress)
    out = Path(out or default_directory(spec))
    with (
        use_threads(spec.threads),
        StagedDirectory(out, force=force, reads=_reads(spec)) as staged,
    ):
        with stages.run("load") as stage:
            model = load_model(spec)
            resolved = resolve(spec, model)  # hashes the checkpoint as it was read
            kept_modules(model, spec.keep_fp32)
            stage.detail = "; ".join((f"{count_parameters(model):,} parameters", *model.notes))
        with stages.run("inputs") as stage:
            few = is_costly(model)
            job = gather(spec, resolved, model, staged.path, stages, stage, measuring, few=few)
        return publish(job, out, staged)


def _reads(spec: ExportSpec) -> list[Path]:
    """Return the files and directories that an export reads."""
    labelled = [Path(spec.eval)] if spec.eval and spec.eval != MOTION else []
    trained = [spec.checkpoint] if spec.checkpoint else []
    return [*trained, *spec.video, *spec.calibration, *labelled]


def use_threads(wanted: int | None) -> AbstractContextManager[None]:
    """Let PyTorch use the wanted threads, or at most one for each core of this process."""
    present = torch.get_num_threads()
    return in_threads(wanted or min(present, usable_cores() or present))


def publish(job: Job, out: Path, staged: StagedDirectory) -> ExportResult:
    """Run the stages from `rewrite` on, and write report, manifest and model card.

    Raises:
        UsageError: if the inputs do not fit into the reference.
    """
    inputs, spec = job.inputs, job.spec
    each = sum(array[0].nbytes for array in inputs.arrays.values())
    stored = len(inputs.names) if inputs.given else 0 if spec.no_store_clips else len(spec.video)
    require_room(stored * each)
    with ExitStack() as resources:
        report, floors = _produce(job, resources)
    write_report(report, staged.path, make_sheets(job.inputs, job.model.preprocessing))
    write_manifest(
        staged.path,
        report,
        model={"family": job.model.family, "config": asdict(job.model.config)},
        preprocessing=job.model.preprocessing,
        labels=job.model.labels,
        task=job.model.task,
        floors=floors,
    )
    write_model_card(staged.path)
    staged.publish()
    return ExportResult(out, report, overall_verdict(report.parity))


def _produce(job: Job, resources: ExitStack) -> tuple[Report, dict[str, float | None]]:
    """Run the stages from `rewrite` to `report`; give the floors of the reference too."""
    spec, stages = job.spec, job.stages
    choice = choose_flavour(spec.wanted_engine, gpu=look_for_gpu().gpu is not None)
    targets = other_targets(spec, choice)
    truth = TruthRunner(job.model, job.inputs.shapes)
    building, path = None, job.directory / ENGINE
    with stages.run("rewrite") as stage:
        rewritten = rewrite_proven(job, stage, targets, truth)
    with stages.run("onnx") as stage:
        engine_graph = make_engine_graph(job) if "tensorrt" in targets else None
        if choice.flavour and engine_graph:
            building = _start_engine(choice.flavour, spec, engine_graph, path, resources)
        graphs = make_graphs(job, rewritten.model, resources, targets, engine_graph)
        paths, threads = (graphs.onnx, graphs.for_engine), torch.get_num_threads()
        opened = load_graphs(*paths, spec.precision, resources, threads=threads)
        if "openvino" in targets:
            both = (graphs.for_openvino, graphs.onnx)
            opened += open_for_openvino(spec, *both, resources, threads=threads)
        graph = graphs.summary
        stage.detail = f"{graph.nodes} nodes, opset {graph.opset}, {graph.file_bytes / 1e6:.1f} MB"
    with stages.run("engine") as stage:
        stage.detail = choice.reason
        engine = _finish_engine(building, stage)
        module = FLAVOURS[engine.flavour].module if engine else None
        opened += load_engine(module, path, spec.precision, resources)
    with stages.run("parity") as stage:
        parity, floors = _prove(job, opened, stage, truth)
    ladder, accuracy = None, ()
    if not passed_with_room(parity):
        with stages.run("ladder") as stage:
            ladder = explain(job, rewritten.model, graphs.onnx, stage)
    if job.dataset is not None:
        with stages.run("accuracy") as stage:
            accuracy = measure_accuracy(job, job.dataset, opened, stage)
    with job.measuring(), stages.run("latency") as stage:
        timed = measure_latency(job, opened.runners, graphs.onnx, graphs.fp32, stage)
    facts = _environment(timed)  # takes time that belongs to no stage: it asks each TensorRT
    with stages.run("report"):
        report = Report(
            spec=job.resolved,
            environment=facts,
            stages=(),
            parity=parity,
            latency=timed.rows,
            engine=_engine_facts(engine, stages, opened),
            graph=graph_facts(graphs, job, timed.cost, rewritten),
            accuracy=accuracy,
            ladder=ladder,
        )
    return replace(report, stages=tuple(stages.done)), floors


def _prove(
    job: Job, opened: Opened, stage: Stage, truth: TruthRunner
) -> tuple[tuple[Parity, ...], dict[str, float | None]]:
    """Judge the runtimes, and keep what they were judged by; give the floors too."""
    spec, inputs = job.spec, job.inputs
    references = make_references(spec, job.model, inputs, job.calibration, opened, stage, truth)
    structures = make_structures(spec, job.model, inputs, job.calibration, job.directory, stage)
    how = (spec.run_batch, spec.dynamic_batch, stage)
    parity = judge_runtimes(references, inputs, opened, *how)
    parity += judge_structures(job.directory, structures, references, inputs, spec.precision, *how)
    return parity, keep_references(job, references, structures)


def _start_engine(
    flavour: str, spec: ExportSpec, graph: Path, path: Path, resources: ExitStack
) -> Building:
    """Start to build the engine in another process, while this one traces the other graphs."""
    building = Building(
        graph,
        path,
        flavour=flavour,
        profile=spec.dynamic_batch,
        targets=spec.engine_targets if FLAVOURS[flavour].takes_targets else (),
        checked=True,  # when it was written
    )
    resources.callback(building.close)
    return building


def _finish_engine(building: Building | None, stage: Stage) -> EngineInfo | None:
    if building is None:
        stage.skipped = True
        return None

    def report(progress: BuildProgress) -> None:
        stage.progress(progress.fraction, progress.phase)

    engine = building.finish(report)
    stage.peak_memory_mb = engine.peak_memory_mb or 0.0
    stage.detail += f"; built in {engine.seconds:.1f} s, beside the graphs"
    return engine


def _environment(timed: Timed) -> dict[str, Any]:
    return environment.describe() | {
        "threads": torch.get_num_threads(),
        "cores_busy_with_others": timed.cores_busy_with_others,
        "limit": timed.limit and asdict(timed.limit),
    }


def _engine_facts(engine: EngineInfo | None, stages: Stages, opened: Opened) -> dict[str, Any]:
    if engine is None:
        reason = next(stage.detail for stage in stages.done if stage.name == "engine")
        return {"status": "not built", "reason": reason}
    facts: dict[str, Any] = asdict(engine) | {"flavour": FLAVOURS[engine.flavour].module}
    facts |= facts.pop("fusion") or {}
    return engine_here(facts, opened)


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
