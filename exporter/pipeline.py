"""The stages in order: load, inputs, onnx, engine, parity, latency, report.

The only file that knows the concrete runners.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch

from exporter import environment
from exporter.bench import bench
from exporter.clips import Inputs, gather_calibration, gather_inputs
from exporter.contention import Contention
from exporter.cost import GraphCost, count_cost, matmul_shapes
from exporter.engine_progress import BuildProgress
from exporter.errors import OnnxError, RuntimeFailure
from exporter.evaluate import Dataset, evaluate, open_dataset
from exporter.ladder import climb
from exporter.load import (
    calibrated_ranges,
    default_directory,
    load_exported,
    load_model,
    resolve,
    rewrite_for_export,
)
from exporter.machine import BUDGET_SECONDS, MachineLimit, measure_machine, of_limit
from exporter.manifest import read_manifest, write_manifest
from exporter.output import StagedDirectory
from exporter.precision import Int8, Ranges, in_precision, kept_modules, observe_ranges
from exporter.quantize import quantize
from exporter.report import write_report
from exporter.results import Accuracy, Ladder, Latency, Parity, Report, Verdict, overall_verdict
from exporter.rewrite import Fired
from exporter.runners.base import Runner
from exporter.runners.eager import EagerRunner
from exporter.runners.onnxruntime import OnnxRuntimeRunner, available_devices
from exporter.runners.reference import EVALUATED, ReferenceRunner
from exporter.runners.tensorrt import TensorRtRunner
from exporter.spec import ExportSpec
from exporter.stages import OnProgress, Stage, Stages
from exporter.to_engine import FLAVOURS, EngineInfo, build_engine, choose_flavour
from exporter.to_onnx import OnnxGraph, check_onnx, export_onnx
from exporter.validate import (
    ILL_CONDITIONED,
    Reference,
    make_reference,
    relative_error,
    validate,
    with_lower_floor,
)
from model.classifier import VideoClassifier

# What of a spec decides the graph: no path and no measure of this machine.
_OF_THE_GRAPH = (
    *("model", "attn", "scheme", "res", "frames", "channels", "num_classes", "dim", "depth"),
    *("heads", "dim_head", "patch_size", "semantics", "batch", "dynamic_batch", "mask"),
    *("embed_preprocess", "precision", "keep_fp32", "rewrite", "no_rewrite", "optimize_for"),
    *("opset", "seed"),
)


# Relative L2 in float64: far above its rounding, far below what any mistake does.
REWRITE_LIMIT = 1e-6
# Runtimes that nobody deploys: they are judged, not timed.
_FOR_PROOF_ONLY = (ReferenceRunner.name, "onnxruntime-symmetric")

# Entered for the time in which latency is measured.
Measuring = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class ExportResult:
    """Where the export lies, what it is, and whether it is proven to be the same model."""

    directory: Path
    report: Report
    verdict: Verdict


@dataclass(frozen=True)
class _Job:
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


@dataclass(frozen=True)
class _Graphs:
    """The graph that is delivered, the one the engine is built from, and their float32 origin."""

    onnx: Path
    for_engine: Path
    fp32: Path | None = None
    quantized: dict[str, Any] | None = None


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
            job = _gather(spec, resolved, model, staged.path, stages, stage, measuring)
        with stages.run("rewrite") as stage:
            rewritten, fired = _rewrite(job, stage)
        with ExitStack() as resources:
            report = _produce(job, rewritten, fired, resources)
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
        ranges = calibrated_ranges(spec, model, spec.precision)
    with ExitStack() as runners, stages.run("parity") as stage:
        candidates, absences = _load_onnx(directory / "model.onnx", spec.precision, runners)
        module = manifest["engine"].get("flavour")
        runner, absence = _load_engine(module, directory / "model.engine", spec.precision, runners)
        if absence and torch.cuda.is_available():
            raise RuntimeFailure(absence.reason)
        candidates += [runner] if runner else []
        absences += [absence] if absence else []
        parity = _prove(spec, model, inputs, ranges, candidates, stage) + absences
    return Report(
        spec=resolve(spec, model),
        environment=environment.describe(),
        stages=tuple(stages.done),
        parity=tuple(parity),
        latency=(),
        engine=_engine_here(manifest["engine"], executed=runner is not None),
        graph=asdict(check_onnx(directory / "model.onnx")),
    )


def _gather(
    spec: ExportSpec,
    resolved: dict[str, Any],
    model: VideoClassifier,
    directory: Path,
    stages: Stages,
    stage: Stage,
    measuring: Measuring,
) -> _Job:
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
    return _Job(spec, resolved, model, *clips, directory, stages, measuring)


def _rewrite(job: _Job, stage: Stage) -> tuple[VideoClassifier, tuple[Fired, ...]]:
    """Rewrite the model, and prove in float64 that it is still the same function."""
    rewritten, fired = rewrite_for_export(job.spec, job.model)
    clip = job.inputs.batch(1)

    def run(model: VideoClassifier, precision: str = "fp64") -> np.ndarray:
        with EagerRunner(model, job.inputs.shapes, precision) as runner:
            return runner.run(clip)["logits"]

    truth = run(job.model)
    error = relative_error(run(rewritten), truth)
    # What is no function at float32 may be none at float64 either: parity says so.
    if not error <= REWRITE_LIMIT and relative_error(run(job.model, "fp32"), truth) <= (
        ILL_CONDITIONED
    ):
        raise OnnxError(
            "the rewrites made at export changed the function",
            got=f"a relative error of {error:.1e} in float64",
            expected=f"at most {REWRITE_LIMIT:.0e}",
            remedy="export with --rewrite none, and report this with the command used",
        )
    names = ", ".join(entry.name for entry in fired) or "nothing to rewrite"
    stage.detail = f"{names}; {error:.1e} in float64" if fired else names
    return rewritten, fired


def _produce(
    job: _Job, rewritten: VideoClassifier, fired: tuple[Fired, ...], resources: ExitStack
) -> Report:
    spec, stages = job.spec, job.stages
    with stages.run("onnx") as stage:
        graphs = _make_graphs(job, rewritten, resources)
        candidates, absences = _load_onnx(graphs.onnx, spec.precision, resources)
        if graphs.for_engine != graphs.onnx:
            candidates.append(_load_symmetric(graphs.for_engine, spec.precision, resources))
        graph = check_onnx(graphs.onnx)
        stage.detail = f"{graph.nodes} nodes, opset {graph.opset}, {graph.file_bytes / 1e6:.1f} MB"
    engine_path = job.directory / "model.engine"
    with stages.run("engine") as stage:
        engine = _build_engine(spec, graphs.for_engine, engine_path, stage)
        stage.peak_memory_mb = (engine and engine.peak_memory_mb) or 0.0
    flavour = FLAVOURS[engine.flavour].module if engine else None
    engine_runner, absence = _load_engine(flavour, engine_path, spec.precision, resources)
    candidates += [engine_runner] if engine_runner else []
    absences += [absence] if absence else []
    with stages.run("parity") as stage:
        parity = _prove(spec, job.model, job.inputs, job.ranges, candidates, stage) + absences
    ladder = _climb(job, rewritten, graphs.onnx, parity)
    accuracy = _evaluate(job, candidates)
    with job.measuring(), stages.run("latency") as stage, Contention() as contention:
        latency = _time(job, candidates, graphs.fp32, stage)
        cost, limit = _measure_limit(spec, graphs.onnx)
        latency = [_against_limit(row, cost, limit) for row in latency]
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
        | {"rewrites": list(map(asdict, fired))},
        accuracy=tuple(accuracy),
        ladder=ladder,
    )


def _make_graphs(job: _Job, rewritten: VideoClassifier, resources: ExitStack) -> _Graphs:
    """`model.onnx`; for int8 also its symmetric form for TensorRT, both made from a float32 one.

    What int8 is timed against is the float32 graph that a user would run instead.
    """
    spec, path = job.spec, job.directory / "model.onnx"
    if job.calibration is None:
        lowered = in_precision(rewritten, spec.precision, spec.keep_fp32)
        _export_onnx(job, lowered, path)
        return _Graphs(path, path)
    folder = Path(resources.enter_context(TemporaryDirectory()))
    aside, fp32 = folder / "aside.onnx", folder / "fp32.onnx"
    _export_onnx(job, rewritten, aside)
    in_full = replace(spec, precision="fp32", keep_fp32=(), calibration=())
    _export_onnx(job, rewrite_for_export(in_full, job.model)[0], fp32)
    kept = kept_modules(rewritten, spec.keep_fp32)
    clips = job.calibration.arrays
    made = quantize(aside, path, clips, form="onnxruntime", keep=kept)
    if spec.engine == "none":
        return _Graphs(path, path, fp32, asdict(made))
    symmetric = job.directory / "model.tensorrt.onnx"
    _export_onnx(job, rewrite_for_export(spec, job.model, integer_products=True)[0], aside)
    quantize(aside, symmetric, clips, form="tensorrt", keep=kept)
    return _Graphs(path, symmetric, fp32, asdict(made))


def _export_onnx(job: _Job, model: VideoClassifier, path: Path) -> None:
    spec = job.spec
    description = {
        "tsformer.spec": json.dumps({name: job.resolved[name] for name in _OF_THE_GRAPH}),
        "tsformer.family": model.family,
        "tsformer.config": json.dumps(asdict(model.config), sort_keys=True),
        "tsformer.preprocessing": json.dumps(asdict(job.model.preprocessing), sort_keys=True),
        "tsformer.labels": json.dumps(job.model.labels),
        "tsformer.precision": spec.precision,
    }
    example = job.inputs.batch(spec.run_batch)
    export_onnx(
        model,
        {name: torch.from_numpy(array) for name, array in example.items()},
        path,
        opset=spec.graph_opset,
        dynamic_batch=spec.dynamic_batch,
        metadata=description,
    )


def _load_onnx(path: Path, precision: str, runners: ExitStack) -> tuple[list[Runner], list[Parity]]:
    """What can run the graph here, and the parity rows that say what cannot.

    ONNX Runtime takes every device it can use; a float32 graph that does not load is an error. A
    graph of lower precision also goes to the evaluator that really computes in it.
    """
    devices = [d for d in available_devices() if d == "cpu" or torch.cuda.is_available()]
    threads = torch.get_num_threads()
    found: list[Runner] = []
    absences = []
    for device in devices:
        try:
            session = OnnxRuntimeRunner(path, device, threads=threads, precision=precision)
        except RuntimeFailure as error:
            if precision == "fp32":
                raise
            absences.append(Parity("onnxruntime", device, precision, "not-run", reason=str(error)))
        else:
            found.append(runners.enter_context(session))
    if precision in EVALUATED:
        found.append(runners.enter_context(ReferenceRunner(path, precision)))
    return found, absences


def _load_symmetric(path: Path, precision: str, resources: ExitStack) -> Runner:
    """The graph that the engine is built from, which a CPU can run too."""
    session = OnnxRuntimeRunner(path, threads=torch.get_num_threads(), precision=precision)
    session.name = "onnxruntime-symmetric"
    return resources.enter_context(session)


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


def _load_engine(
    module: str | None, path: Path, precision: str, runners: ExitStack
) -> tuple[Runner | None, Parity | None]:
    """A runner of an engine built by `module`, or the parity row that says why there is none."""
    if module is None:
        return None, None
    if not torch.cuda.is_available():
        reason = "this machine has no NVIDIA GPU to execute the engine"
        return None, Parity(module, "none", precision, "not-run", reason=reason)
    flavour = next(name for name, flavour in FLAVOURS.items() if flavour.module == module)
    try:
        return runners.enter_context(TensorRtRunner(path, flavour, precision)), None
    except RuntimeFailure as error:
        return None, Parity(module, "cuda", precision, "not-run", reason=str(error))


def _prove(
    spec: ExportSpec,
    model: VideoClassifier,
    inputs: Inputs,
    ranges: Ranges | None,
    candidates: list[Runner],
    stage: Stage,
) -> list[Parity]:
    stage.progress(None, "float64 truth")
    clips = inputs.arrays
    with (
        EagerRunner(model, inputs.shapes, "fp64") as truth,
        EagerRunner(model, inputs.shapes) as fp32,
    ):
        reference = make_reference(truth, fp32, inputs.names, clips)
    references: dict[Int8 | None, Reference] = {}
    parity = []
    for runner in candidates:
        stage.progress(None, f"{runner.name} {runner.device}")
        int8 = None if ranges is None else _rounding(runner.name, ranges)
        if spec.precision == "fp32":
            references[int8] = reference
        elif int8 not in references:
            how = (spec.precision, spec.keep_fp32, int8)
            with EagerRunner(model, inputs.shapes, *how) as floor:
                references[int8] = with_lower_floor(reference, floor, clips)
        sizes = _batch_sizes(spec, bounded=not isinstance(runner, OnnxRuntimeRunner))
        stateless = isinstance(runner, ReferenceRunner)
        parity.append(validate(runner, references[int8], clips, sizes, stateless=stateless))
    stage.detail = f"{len(inputs.names)} inputs at batch {', '.join(map(str, _batch_sizes(spec)))}"
    return parity


def _rounding(runtime: str, ranges: Ranges) -> Int8:
    """How the int8 graph of a runtime rounds: see the forms of `quantize`."""
    if runtime == OnnxRuntimeRunner.name:
        return Int8(ranges)
    return Int8(ranges, symmetric=True, weight_levels=127)


def _climb(
    job: _Job, rewritten: VideoClassifier, graph: Path, parity: list[Parity]
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


def _int8_of(model: VideoClassifier, calibration: Inputs | None) -> Int8 | None:
    return None if calibration is None else Int8(observe_ranges(model, calibration.arrays))


def _evaluate(job: _Job, candidates: list[Runner]) -> list[Accuracy]:
    if job.dataset is None:
        return []
    with (
        job.stages.run("accuracy") as stage,
        EagerRunner(job.model, job.inputs.shapes) as eager,
    ):
        stage.detail = f"{job.dataset.count} clips of {job.dataset.name}"
        return evaluate([eager, *candidates], job.dataset, job.spec.run_batch)


def _batch_sizes(spec: ExportSpec, *, bounded: bool = False) -> list[int]:
    """The batch of a static graph; of a dynamic one 1, 2, 3, OPT and MAX, as far as accepted."""
    profile = spec.dynamic_batch
    if profile is None:
        return [spec.run_batch]
    least = profile.min if bounded else 1
    return sorted(n for n in {1, 2, 3, profile.opt, profile.max} if least <= n <= profile.max)


def _time(job: _Job, candidates: list[Runner], fp32: Path | None, stage: Stage) -> list[Latency]:
    """Time what a user would run: not the evaluator, nor what only stands for the engine."""

    def report(done: int, total: int) -> None:
        stage.progress(done / total, f"{done} rounds")

    timed = [runner for runner in candidates if runner.name not in _FOR_PROOF_ONLY]
    for runner in timed:
        if isinstance(runner, OnnxRuntimeRunner):
            runner.use_threads(torch.get_num_threads())
    with ExitStack() as others:
        baselines: list[Runner] = [others.enter_context(EagerRunner(job.model, job.inputs.shapes))]
        if fp32 is not None:
            threads = torch.get_num_threads()
            baselines.append(others.enter_context(OnnxRuntimeRunner(fp32, threads=threads)))
        latency = bench(
            [*baselines, *timed],
            job.inputs.batch(job.spec.run_batch),
            budget_seconds=job.spec.bench_seconds,
            on_round=report,
        )
    stage.detail = f"{latency[0].runs} rounds, interleaved"
    stage.peak_memory_mb = max(row.peak_memory_mb for row in latency)
    return latency


def _measure_limit(spec: ExportSpec, graph: Path) -> tuple[GraphCost, MachineLimit]:
    """What a run of the graph costs, and how fast this machine does its matrix products."""
    model = onnx.load(graph)
    shapes = matmul_shapes(model, spec.run_batch)
    seconds = min(BUDGET_SECONDS, spec.bench_seconds)
    limit = measure_machine(shapes, torch.get_num_threads(), seconds=seconds)
    return count_cost(model, spec.run_batch), limit


def _against_limit(row: Latency, cost: GraphCost, limit: MachineLimit) -> Latency:
    if row.device != "cpu":
        return row
    return replace(row, of_limit=of_limit(cost, limit, row.p50_ms / 1e3))


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


def _graph_facts(graph: OnnxGraph, graphs: _Graphs, job: _Job) -> dict[str, Any]:
    used = zip(job.inputs.names, job.inputs.notes, strict=True)
    facts = asdict(graph) | {
        "casts": graph.ops.get("Cast", 0),
        "inputs_used": [{"name": name, "note": note} for name, note in used],
        "peak_memory_mb": max(stage.peak_memory_mb or 0.0 for stage in job.stages.done),
    }
    if graphs.fp32 is not None and job.calibration is not None:
        facts["quantized"] = graphs.quantized
        facts["fp32_bytes"] = graphs.fp32.stat().st_size
        facts["calibration"] = list(job.calibration.names)
    return facts


def _count_parameters(model: VideoClassifier) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
