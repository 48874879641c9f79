"""Two proofs: the rewritten model against the original, and what every runner is judged by."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from exporter.errors import OnnxError
from exporter.files.manifest import MODULE
from exporter.files.reference import REFERENCE, KeptReference, Structure, write_reference
from exporter.graph.operators import foreign_operators
from exporter.graph.weights import casts_outside, coarse_weights, foreign_casts, hash_weights
from exporter.inputs.clips import Inputs
from exporter.inputs.kept import describe_inputs
from exporter.precision import REST_OF_INT8, Int8, in_precision, observe_ranges
from exporter.proof.decide import ILL_CONDITIONED
from exporter.proof.distance import largest, worst_error
from exporter.proof.exact import ExactModel
from exporter.proof.judge import Reference, make_reference, with_lower_floor
from exporter.proof.ladder import climb
from exporter.proof.rows import columns, run_clips, run_sized
from exporter.proof.runtimes import FP32, floors_of, kept_floors, rounding_form
from exporter.proof.scales import wrong_scales
from exporter.proof.structure import TARGETS_OF_GRAPHS, compared_inputs
from exporter.results import Ladder
from exporter.rewrite import Refused, Rewritten, rewrite, rewrite_measured
from exporter.rewrite.choose import rewrite_for_export, rewrites_to_skip
from exporter.rewrite.measure import measure
from exporter.run.job import Calibration, Job
from exporter.run.stages import Stage
from exporter.runners.base import Runner
from exporter.runners.eager import EagerRunner, TruthRunner
from exporter.runners.open import Opened
from exporter.spec import ExportSpec
from model.classifier import VideoClassifier
from model.preprocessing import Preprocessing

# Relative L2 in float64: far above rounding errors, far below the effect of any mistake.
REWRITE_LIMIT = 1e-9
_COSTLY_FLOPS = 2e10  # of a clip


def rewrite_proven(job: Job, stage: Stage, targets: Collection[str], exact: Runner) -> Rewritten:
    """Rewrite the model for `model.onnx`, and prove in float64 that it is the same function.

    The layouts of the other targets, `tensorrt` and `openvino`, are proven too. The proof compares
    the model that is rewritten in float64, where rounding plays no role, with the truth of `exact`.
    It takes the inputs on which the structure of a graph is compared with the rewritten model.
    The rounding of folded weights is judged by `judge_runtimes`, in units of the rounding of the
    model itself.
    """
    spec, names = job.spec, job.model.output_names
    skip = rewrites_to_skip(spec, job.model)
    rewritten = rewrite_measured(job.model, skip, spec.run_batch)
    places = list(_compared(job.model, job.inputs))
    clips = {name: array[places] for name, array in job.inputs.arrays.items()}
    # A rewrite must not mix the clips of a batch. No rewrite changes a module of the user.
    batch = 1 if job.model.family == MODULE else 2

    def run(model: VideoClassifier, precision: str = "fp64") -> np.ndarray:
        with EagerRunner(model, job.inputs.shapes, precision) as runner:
            return run_clips(runner, clips, batch, outputs=names)

    def error_of(made: np.ndarray) -> float:
        """The error of the worst output; NaN if one has a NaN."""
        cuts = columns(sizes).values()
        return largest(worst_error(made[:, cut], truth[:, cut]) for cut in cuts)

    with exact:
        truth, sizes = run_sized(exact, clips, names)
    layouts = [skip, *(rewrites_to_skip(spec, job.model, target) for target in sorted(targets))]
    rewritten_exact = (
        rewrite(in_precision(job.model, "fp64"), left_out, spec.run_batch)
        for left_out in {frozenset(layout) for layout in layouts}
    )
    error = largest(error_of(run(model)) for model in rewritten_exact)
    # A model that float32 does not determine may fail in float64 too: leave that to parity.
    if not error <= REWRITE_LIMIT and error_of(run(job.model, "fp32")) <= ILL_CONDITIONED:
        raise OnnxError(
            "the rewrites made at export changed the function",
            got=f"a relative error of {error:.1e} in float64",
            expected=f"at most {REWRITE_LIMIT:.0e}",
            remedy="export with --rewrite none, and report this with the command used",
        )
    names = ", ".join(entry.name for entry in rewritten.fired) or "nothing to rewrite"
    stage.detail = f"{names}; {error:.1e} in float64" if rewritten.fired else names
    left_out = tuple(Refused(name, 0, reason) for name, reason in skip.items())
    return rewritten._replace(refused=left_out + rewritten.refused)


def make_references(
    spec: ExportSpec,
    model: VideoClassifier,
    inputs: Inputs,
    calibration: Calibration | None,
    opened: Opened,
    stage: Stage,
    exact: Runner | None = None,
) -> dict[str, Reference]:
    """Compute the truth, and the floor of each rounding form of the runtimes.

    A runtime that could not be opened counts too: another machine may run it. `exact` gives the
    truth, if something computed a part of it before.
    """
    stage.progress(None, "float64 truth")
    clips = inputs.arrays
    with (
        exact or TruthRunner(model, inputs.shapes) as truth,
        EagerRunner(model, inputs.shapes) as fp32,
    ):
        names = model.output_names
        references = {FP32: make_reference(truth, fp32, inputs.names, clips, names, model.task)}
    runtimes = {row.name for row in opened.runners} | {row.runtime for row in opened.absences}
    for form in sorted(rounding_form(runtime, spec.precision) for runtime in runtimes):
        if form not in references:
            stage.progress(None, f"floor of {form}")
            int8 = None if calibration is None else Int8.of(form, calibration.ranges)
            with EagerRunner(model, inputs.shapes, spec.precision, spec.keep_fp32, int8) as floor:
                references[form] = with_lower_floor(references[FP32], floor, clips)
    return references


def make_structures(
    spec: ExportSpec,
    model: VideoClassifier,
    inputs: Inputs,
    calibration: Calibration | None,
    directory: Path,
    stage: Stage,
) -> dict[str, Structure]:
    """Compute the truth of the structure of each graph, and compare its weights with the model's.

    Args:
        spec: The export.
        model: The model, as it was loaded.
        inputs: The inputs to compute the truth for.
        calibration: The clips whose activations the scales of an int8 graph span.
        directory: Where the graphs are.
        stage: Told about the progress.
    """
    places = _compared(model, inputs)
    clips = {name: array[list(places)] for name, array in inputs.arrays.items()}
    structures = {}
    for file, target in TARGETS_OF_GRAPHS.items():
        if not (directory / file).is_file():
            continue
        stage.progress(None, f"structure of {file}")
        precision = traced_precision(spec, target)
        traced = rewrite_for_export(spec, model, target)
        traced = in_precision(traced, precision, spec.keep_fp32 if precision != FP32 else ())
        graph = onnx.load(directory / file)
        with ExactModel(traced, inputs.batch(1), graph) as exact:
            truth = run_clips(exact, clips, 1, outputs=model.output_names)
        known = None if model.family == MODULE else precision  # a module may cast as it likes
        unknown = find_unknown(exact, graph, known, calibration)
        structures[file] = Structure(places, truth, hash_weights(graph), unknown)
    return structures


def find_unknown(
    exact: ExactModel,
    graph: onnx.ModelProto,
    precision: str | None,
    calibration: Calibration | None,
) -> tuple[str, ...]:
    """Name the weights, types, operators and scales of a graph that no export of its model makes.

    Args:
        exact: The model of the graph.
        graph: The graph.
        precision: That in which the model was traced; None leaves out numbers, types and operators.
        calibration: The clips whose activations the scales of an int8 graph span.
    """
    unknown = exact.unknown + coarse_weights(graph)
    if precision is not None:
        unknown += exact.foreign_numbers + foreign_casts(graph, precision)
        unknown += casts_outside(graph, exact.halves)
        unknown += foreign_operators(graph, exact.functions, int8=calibration is not None)
    if calibration is not None:
        unknown += wrong_scales(graph, calibration.clips.arrays)
    return unknown


def is_costly(model: VideoClassifier) -> bool:
    """Whether a proof of a model on all synthetic inputs takes minutes on a laptop."""
    return measure(model).flops > _COSTLY_FLOPS


def _compared(model: VideoClassifier, inputs: Inputs) -> tuple[int, ...]:
    """Choose the inputs that are compared in float64; all of those that a caller gave."""
    return compared_inputs(inputs, 0 if inputs.given else measure(model).flops)  # of a clip


def traced_precision(spec: ExportSpec, target: str | None) -> str:
    """Say in which precision the model of a graph was traced."""
    if target == "openvino":  # it converts values and weights itself
        return FP32
    if spec.precision != "int8":
        return spec.precision
    return REST_OF_INT8 if target == "tensorrt" else FP32  # the rest: see `quantize`


def keep_references(
    job: Job, references: Mapping[str, Reference], structures: Mapping[str, Structure]
) -> dict[str, float | None]:
    """Write `reference.npz`; return the floor of each rounding form, None if it is not finite."""
    inputs, truth, floors = job.inputs, references[FP32].truth, floors_of(references)
    outputs = references[FP32].outputs
    entries, clips = describe_inputs(inputs, job.spec.video, store=not job.spec.no_store_clips)
    mask = None if inputs.given else inputs.arrays.get("mask")
    given = inputs.arrays if inputs.given else {}
    described = describe_model(job.model)
    kept = KeptReference(entries, truth, floors, mask, clips, outputs, structures, given, described)
    write_reference(job.directory / REFERENCE, kept)
    return {
        form: error if math.isfinite(error) else None for form, error in kept_floors(kept).items()
    }


def describe_model(model: VideoClassifier) -> dict[str, Any]:
    """Say how clips become the input of a model, if it takes clips, and what its logits mean."""
    taken: Preprocessing | None = model.preprocessing  # None for a module of a user
    return {
        "preprocessing": taken and asdict(taken),
        "labels": model.labels,
        "task": model.task,
    }


def explain(job: Job, rewritten: VideoClassifier, graph: Path, stage: Stage) -> Ladder | None:
    """Measure the error of each module, to explain the error of the outputs; None without one."""
    spec, names, calibration = job.spec, job.inputs.names, job.calibration
    shown = job.inputs.chosen(names[0], names[-1] if job.inputs.given else "checkerboard")
    found = climb(
        rewritten,
        graph,
        shown,
        precision=spec.precision,
        batch=spec.run_batch,
        keep_fp32=spec.keep_fp32,
        int8=calibration
        and Int8.of("int8-onnxruntime", observe_ranges(rewritten, calibration.clips.arrays)),
        on_clip=lambda done, total: stage.progress(done / total, "module by module"),
    )
    stage.detail = f"{len(found.rungs)} modules on {', '.join(shown.names)}"
    return found if found.rungs else None
