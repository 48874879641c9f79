"""Make the ONNX graphs of an export from a rewritten model, in the precision of the export."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from exporter.files.manifest import ENGINE_GRAPH, GRAPH, MODULE, OPENVINO_GRAPH
from exporter.graph.cost import GraphCost
from exporter.precision import REST_OF_INT8, in_precision, kept_modules
from exporter.rewrite import Rewritten
from exporter.rewrite.choose import rewrite_for_export, rewrites_to_skip
from exporter.run.job import Job
from exporter.spec import OF_THE_GRAPH, ExportSpec
from exporter.to_onnx.export import OnnxGraph, check_onnx, export_onnx
from exporter.to_onnx.quantize import Quantized, quantize
from model.classifier import VideoClassifier
from model.outputs import LOGITS

_HALVES = ("fp16", "bf16")
HALF_QUANTISED_OPSET = 19  # the first whose QuantizeLinear takes fp16


@dataclass(frozen=True)
class Graphs:
    """The graph files of an export.

    Attributes:
        onnx: The graph for ONNX Runtime, `model.onnx`.
        summary: What `onnx` is made of.
        for_engine: The graph from which the engine is built; None where TensorRT is no target.
        for_openvino: The graph that OpenVINO runs: `onnx` where its layout suits OpenVINO too; None
            where OpenVINO is no target.
        fp32: For an int8 export, the float32 graph whose time is compared with int8.
        quantized: For an int8 export, the summary of the quantisation of `onnx`.
    """

    onnx: Path
    summary: OnnxGraph
    for_engine: Path | None = None
    for_openvino: Path | None = None
    fp32: Path | None = None
    quantized: dict[str, Any] | None = None


def make_graphs(
    job: Job,
    rewritten: VideoClassifier,
    resources: ExitStack,
    targets: Collection[str],
    for_engine: Path | None = None,
) -> Graphs:
    """Write `model.onnx`, and the graph for OpenVINO if it is a target.

    For ONNX Runtime an int8 graph is quantised from a float32 graph. The time of int8 is compared
    with the time of the float32 graph that a user would run instead of int8.
    """
    spec, path = job.spec, job.directory / GRAPH
    others = for_engine, _make_for_openvino(job, path) if "openvino" in targets else None
    if job.calibration is None:
        lowered = in_precision(rewritten, spec.precision, spec.keep_fp32)
        return Graphs(path, _export_onnx(job, lowered, path), *others)
    fp32 = Path(resources.enter_context(TemporaryDirectory())) / "fp32.onnx"
    in_full = replace(spec, precision="fp32", keep_fp32=(), calibration=())
    _export_onnx(job, rewrite_for_export(in_full, job.model), fp32)
    made = _write_int8(job, rewritten, path)
    return Graphs(path, check_onnx(path), *others, fp32, asdict(made))


def make_engine_graph(job: Job) -> Path:
    """Write the graph that an engine is built from; int8 is int8 products and fp16 for the rest."""
    spec, path = job.spec, job.directory / ENGINE_GRAPH
    model = rewrite_for_export(spec, job.model, "tensorrt")
    if job.calibration is None:
        _export_onnx(job, in_precision(model, spec.precision, spec.keep_fp32), path)
        return path
    kept = kept_modules(model, spec.keep_fp32)
    with TemporaryDirectory() as folder:
        half = Path(folder) / "half.onnx"
        lowered = in_precision(model, REST_OF_INT8, spec.keep_fp32)
        _export_onnx(job, lowered, half, least_opset=HALF_QUANTISED_OPSET)
        quantize(half, path, job.calibration.clips.arrays, form="tensorrt", keep=kept)
    return path


def _write_int8(job: Job, model: VideoClassifier, path: Path) -> Quantized:
    """Write a graph of int8 products, and float32 for the rest, for a CPU."""
    assert job.calibration is not None
    kept, clips = kept_modules(model, job.spec.keep_fp32), job.calibration.clips.arrays
    with TemporaryDirectory() as folder:
        aside = Path(folder) / "aside.onnx"
        _export_onnx(job, model, aside)
        return quantize(aside, path, clips, form="onnxruntime", keep=kept)


def _make_for_openvino(job: Job, shared: Path) -> Path | None:
    """Write the graph for OpenVINO, or give `shared` where both runtimes take the same one.

    OpenVINO computes bf16 and fp16 from a float32 graph: it converts values and weights itself. So
    it cannot keep modules in float32, and there is no graph for that.
    """
    spec, path = job.spec, job.directory / OPENVINO_GRAPH
    if spec.keep_fp32 and spec.precision in _HALVES:
        return None
    if not has_openvino_graph(spec, job.model):
        return shared
    model = rewrite_for_export(spec, job.model, "openvino")
    if job.calibration is None:
        _export_onnx(job, model, path, precision="fp32")
    else:
        _write_int8(job, model, path)
    return path


def has_openvino_graph(spec: ExportSpec, model: VideoClassifier) -> bool:
    """Tell whether OpenVINO takes another graph than ONNX Runtime."""
    if spec.precision in _HALVES:
        return True
    return rewrites_to_skip(spec, model).keys() != rewrites_to_skip(spec, model, "openvino").keys()


def _export_onnx(
    job: Job, model: VideoClassifier, path: Path, least_opset: int = 0, precision: str | None = None
) -> OnnxGraph:
    spec = job.spec if precision is None else replace(job.spec, precision=precision, keep_fp32=())
    description = (
        {
            "tsformer.module": json.dumps(asdict(model.config)),
            "tsformer.precision": spec.precision,
        }
        if model.family == MODULE
        else {
            "tsformer.spec": json.dumps({name: job.resolved[name] for name in OF_THE_GRAPH}),
            "tsformer.family": model.family,
            "tsformer.config": json.dumps(asdict(model.config), sort_keys=True),
            "tsformer.preprocessing": json.dumps(asdict(job.model.preprocessing), sort_keys=True),
            "tsformer.labels": json.dumps(job.model.labels),
            "tsformer.task": job.model.task,
            "tsformer.precision": spec.precision,
        }
    )
    if model.output_names != (LOGITS,) and model.family != MODULE:
        description["tsformer.outputs"] = json.dumps(model.output_names)
    example = job.inputs.batch(spec.run_batch)
    return export_onnx(
        model,
        {name: torch.from_numpy(array) for name, array in example.items()},
        path,
        opset=max(spec.graph_opset, least_opset),
        dynamic_batch=spec.dynamic_batch,
        metadata=description,
        output_names=model.output_names,
    )


def graph_facts(
    graphs: Graphs, job: Job, cost: GraphCost | None, rewritten: Rewritten
) -> dict[str, Any]:
    """Give the facts of `model.onnx` for the report, as values that JSON can hold."""
    batch = job.spec.run_batch
    used = zip(job.inputs.names, job.inputs.notes, strict=True)
    facts = asdict(graphs.summary) | {
        "casts": graphs.summary.ops.get("Cast", 0),
        "inputs_used": [{"name": name, "note": note} for name, note in used],
        "peak_memory_mb": max(stage.peak_memory_mb or 0.0 for stage in job.stages.done),
    }
    if graphs.for_openvino not in (None, graphs.onnx):
        facts["openvino_bytes"] = graphs.for_openvino.stat().st_size
    if graphs.fp32 is not None and job.calibration is not None:
        facts |= {
            "quantized": graphs.quantized,
            "fp32_bytes": graphs.fp32.stat().st_size,
            "calibration": list(job.calibration.clips.names),
        }
    return facts | {
        "flops": cost and cost.flops // batch,
        "bytes": cost and cost.bytes // batch,
        "rewrites": [asdict(entry) for entry in rewritten.fired],
        "rewrites_refused": [asdict(entry) for entry in rewritten.refused],
    }
