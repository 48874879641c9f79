"""The stages in order: load, inputs, onnx, engine, parity, latency, report.

The only file that knows the concrete runners.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from exporter import environment
from exporter.bench import bench
from exporter.clips import Inputs, gather_inputs
from exporter.contention import Contention
from exporter.engine_progress import BuildProgress
from exporter.errors import RuntimeFailure
from exporter.load import check_same_checkpoint, default_directory, load_model, resolve
from exporter.manifest import read_manifest, write_manifest
from exporter.output import StagedDirectory
from exporter.report import overall_verdict, write_report
from exporter.results import Latency, Parity, Report, Verdict
from exporter.runners.base import Runner
from exporter.runners.eager import EagerRunner
from exporter.runners.onnxruntime import OnnxRuntimeRunner, available_devices
from exporter.runners.tensorrt import TensorRtRunner
from exporter.spec import ExportSpec
from exporter.stages import OnProgress, Stage, Stages
from exporter.to_engine import FLAVOURS, EngineInfo, build_engine, choose_flavour
from exporter.to_onnx import OnnxGraph, check_onnx, export_onnx
from exporter.validate import make_reference, validate
from model.classifier import VideoClassifier

# What of a spec decides the graph: no path and no measure of this machine.
_OF_THE_GRAPH = (
    *("model", "attn", "scheme", "res", "frames", "channels", "num_classes", "dim", "depth"),
    *("heads", "dim_head", "patch_size", "semantics", "batch", "dynamic_batch", "mask"),
    *("precision", "opset", "seed"),
)


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
) -> ExportResult:
    """Run the whole line; the directory appears whole or not at all.

    Args:
        spec: What to export.
        out: The directory to make; named after the spec under `build/` unless given.
        force: Replace an earlier export in that place.
        on_progress: Told what is being done.

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
            stage.detail = f"{_count_parameters(model):,} parameters"
        with stages.run("inputs") as stage:
            inputs = gather_inputs(
                spec.video,
                model.config,
                model.preprocessing,
                mask=spec.mask,
                on_clip=lambda name, stage=stage: stage.progress(None, name),
            )
            real = len(spec.video)
            stage.detail = f"{real} real, {len(inputs.names) - real} synthetic"
        with ExitStack() as runners:
            report = _produce(spec, resolved, model, inputs, staged.path, stages, runners)
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
        spec = replace(ExportSpec.from_dict(manifest["spec"]), video=video)
        spec = replace(spec, checkpoint=checkpoint or spec.checkpoint, allow_ill_conditioned=False)
        check_same_checkpoint(spec, manifest["spec"])
        model = load_model(spec)
    with stages.run("inputs"):
        inputs = gather_inputs(video, model.config, model.preprocessing, mask=spec.mask)
    with ExitStack() as runners, stages.run("parity") as stage:
        candidates = _load_onnx(directory / "model.onnx", runners)
        runner, absence = _load_engine(
            manifest["engine"].get("flavour"), directory / "model.engine", runners
        )
        if absence and torch.cuda.is_available():
            raise RuntimeFailure(absence.reason)
        candidates += [runner] if runner else []
        parity = _prove(spec, model, inputs, candidates, stage) + ([absence] if absence else [])
    return Report(
        spec=resolve(spec, model),
        environment=environment.describe(),
        stages=tuple(stages.done),
        parity=tuple(parity),
        latency=(),
        engine=_engine_here(manifest["engine"], executed=runner is not None),
        graph=asdict(check_onnx(directory / "model.onnx")),
    )


def _produce(
    spec: ExportSpec,
    resolved: dict[str, Any],
    model: VideoClassifier,
    inputs: Inputs,
    directory: Path,
    stages: Stages,
    runners: ExitStack,
) -> Report:
    onnx_path, engine_path = directory / "model.onnx", directory / "model.engine"
    with stages.run("onnx") as stage:
        graph = _export_onnx(spec, resolved, model, inputs, onnx_path)
        onnx_runners = _load_onnx(onnx_path, runners)
        stage.detail = f"{graph.nodes} nodes, opset {graph.opset}, {graph.bytes / 1e6:.1f} MB"
    with stages.run("engine") as stage:
        engine = _build_engine(spec, onnx_path, engine_path, stage)
        stage.peak_memory_mb = (engine and engine.peak_memory_mb) or 0.0
    flavour = FLAVOURS[engine.flavour].module if engine else None
    engine_runner, engine_absence = _load_engine(flavour, engine_path, runners)
    if engine_runner:
        onnx_runners.append(engine_runner)
    with stages.run("parity") as stage:
        parity = _prove(spec, model, inputs, onnx_runners, stage)
        if engine_absence:
            parity.append(engine_absence)
    with stages.run("latency") as stage, Contention() as contention:
        latency = _time(spec, model, inputs, onnx_runners, stage)
        stage.detail = f"{latency[0].runs} rounds, interleaved"
        stage.peak_memory_mb = max(row.peak_memory_mb for row in latency)
    facts = environment.describe() | {
        "threads": torch.get_num_threads(),
        "cores_busy_with_others": contention.cores,
    }
    return Report(
        spec=resolved,
        environment=facts,
        stages=tuple(stages.done),
        parity=tuple(parity),
        latency=tuple(latency),
        engine=_engine_facts(engine, stages, executed=engine_runner is not None),
        graph=_graph_facts(graph, inputs, stages),
    )


def _export_onnx(
    spec: ExportSpec, resolved: dict[str, Any], model: VideoClassifier, inputs: Inputs, path: Path
) -> OnnxGraph:
    description = {
        "tsformer.spec": json.dumps({name: resolved[name] for name in _OF_THE_GRAPH}),
        "tsformer.family": model.family,
        "tsformer.config": json.dumps(asdict(model.config), sort_keys=True),
        "tsformer.preprocessing": json.dumps(asdict(model.preprocessing), sort_keys=True),
        "tsformer.labels": json.dumps(model.labels),
        "tsformer.precision": spec.precision,
    }
    return export_onnx(
        model,
        {name: torch.from_numpy(array) for name, array in inputs.batch(spec.run_batch).items()},
        path,
        opset=spec.opset,
        dynamic_batch=spec.dynamic_batch,
        metadata=description,
    )


def _load_onnx(path: Path, runners: ExitStack) -> list[Runner]:
    """A session on every device ONNX Runtime can use here; one that does not load is an error."""
    devices = [d for d in available_devices() if d == "cpu" or torch.cuda.is_available()]
    threads = torch.get_num_threads()
    return [
        runners.enter_context(OnnxRuntimeRunner(path, device, threads=threads))
        for device in devices
    ]


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
        targets=spec.targets,
        on_progress=report,
    )


def _load_engine(
    module: str | None, path: Path, runners: ExitStack
) -> tuple[Runner | None, Parity | None]:
    """A runner of an engine built by `module`, or the parity row that says why there is none."""
    if module is None:
        return None, None
    if not torch.cuda.is_available():
        reason = "this machine has no NVIDIA GPU to execute the engine"
        return None, Parity(module, "none", "fp32", "not-run", reason=reason)
    flavour = next(name for name, flavour in FLAVOURS.items() if flavour.module == module)
    try:
        return runners.enter_context(TensorRtRunner(path, flavour)), None
    except RuntimeFailure as error:
        return None, Parity(module, "cuda", "fp32", "not-run", reason=str(error))


def _prove(
    spec: ExportSpec,
    model: VideoClassifier,
    inputs: Inputs,
    candidates: list[Runner],
    stage: Stage,
) -> list[Parity]:
    stage.progress(None, "float64 truth")
    shapes = inputs.shapes
    with EagerRunner(model, shapes, "fp64") as truth, EagerRunner(model, shapes) as floor:
        reference = make_reference(truth, floor, inputs.names, inputs.arrays)
    parity = []
    for runner in candidates:
        stage.progress(None, f"{runner.name} {runner.device}")
        sizes = _batch_sizes(spec, bounded=not isinstance(runner, OnnxRuntimeRunner))
        parity.append(validate(runner, reference, inputs.arrays, sizes))
    stage.detail = f"{len(inputs.names)} inputs at batch {', '.join(map(str, _batch_sizes(spec)))}"
    return parity


def _batch_sizes(spec: ExportSpec, *, bounded: bool = False) -> list[int]:
    """The batch of a static graph; of a dynamic one 1, 2, 3, OPT and MAX, as far as accepted."""
    profile = spec.dynamic_batch
    if profile is None:
        return [spec.run_batch]
    least = profile.min if bounded else 1
    return sorted(n for n in {1, 2, 3, profile.opt, profile.max} if least <= n <= profile.max)


def _time(
    spec: ExportSpec, model: VideoClassifier, inputs: Inputs, runners: list[Runner], stage: Stage
) -> list[Latency]:
    def report(done: int, total: int) -> None:
        stage.progress(done / total, f"{done} rounds")

    with EagerRunner(model, inputs.shapes) as eager:
        return bench(
            [eager, *runners],
            inputs.batch(spec.run_batch),
            budget_seconds=spec.bench_seconds,
            on_round=report,
        )


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


def _graph_facts(graph: OnnxGraph, inputs: Inputs, stages: Stages) -> dict[str, Any]:
    used = zip(inputs.names, inputs.notes, strict=True)
    return asdict(graph) | {
        "inputs_used": [{"name": name, "note": note} for name, note in used],
        "peak_memory_mb": max(stage.peak_memory_mb or 0.0 for stage in stages.done),
    }


def _count_parameters(model: VideoClassifier) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
