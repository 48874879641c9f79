"""Make the ONNX graphs of an export from a rewritten model, in the precision of the export."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from exporter.precision import in_precision, kept_modules
from exporter.rewrite.choose import rewrite_for_export
from exporter.run import Job
from exporter.spec import OF_THE_GRAPH
from exporter.to_onnx.export import export_onnx
from exporter.to_onnx.quantize import quantize
from model.classifier import VideoClassifier


@dataclass(frozen=True)
class Graphs:
    """The graph files of an export.

    Attributes:
        onnx: The graph for ONNX Runtime, `model.onnx`.
        for_engine: The graph from which the engine is built.
        fp32: For an int8 export, the float32 graph whose time is compared with int8.
        quantized: For an int8 export, the summary of the quantisation of `onnx`.
    """

    onnx: Path
    for_engine: Path
    fp32: Path | None = None
    quantized: dict[str, Any] | None = None


def make_graphs(job: Job, rewritten: VideoClassifier, resources: ExitStack) -> Graphs:
    """Write `model.onnx`; for int8 and an engine, also write its symmetric form for TensorRT.

    Each int8 graph is quantised from a float32 graph. The time of int8 is compared with the time
    of the float32 graph that a user would run instead of int8.
    """
    spec, path = job.spec, job.directory / "model.onnx"
    if job.calibration is None:
        lowered = in_precision(rewritten, spec.precision, spec.keep_fp32)
        _export_onnx(job, lowered, path)
        return Graphs(path, path)
    folder = Path(resources.enter_context(TemporaryDirectory()))
    aside, fp32 = folder / "aside.onnx", folder / "fp32.onnx"
    _export_onnx(job, rewritten, aside)
    in_full = replace(spec, precision="fp32", keep_fp32=(), calibration=())
    _export_onnx(job, rewrite_for_export(in_full, job.model), fp32)
    kept = kept_modules(rewritten, spec.keep_fp32)
    clips = job.calibration.clips.arrays
    made = quantize(aside, path, clips, form="onnxruntime", keep=kept)
    if spec.engine == "none":
        return Graphs(path, path, fp32, asdict(made))
    symmetric = job.directory / "model.tensorrt.onnx"
    _export_onnx(job, rewrite_for_export(spec, job.model, integer_products=True), aside)
    quantize(aside, symmetric, clips, form="tensorrt", keep=kept)
    return Graphs(path, symmetric, fp32, asdict(made))


def _export_onnx(job: Job, model: VideoClassifier, path: Path) -> None:
    spec = job.spec
    description = {
        "tsformer.spec": json.dumps({name: job.resolved[name] for name in OF_THE_GRAPH}),
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
