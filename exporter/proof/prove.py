"""Two proofs: the rewritten model against the original, and every runner against the truth."""

from __future__ import annotations

import numpy as np

from exporter.errors import OnnxError
from exporter.inputs.clips import Inputs
from exporter.precision import Int8, Ranges, in_precision
from exporter.proof.judge import (
    ILL_CONDITIONED,
    Reference,
    make_reference,
    relative_error,
    validate,
    with_lower_floor,
)
from exporter.results import Parity
from exporter.rewrite import Refused, Rewritten, rewrite, rewrite_measured
from exporter.rewrite.choose import rewrites_to_skip
from exporter.run import Calibration, Job, Stage
from exporter.runners.eager import EagerRunner
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.runners.open import Opened
from exporter.runners.reference import ReferenceRunner
from exporter.spec import ExportSpec
from model.classifier import VideoClassifier

# Relative L2 in float64: far above rounding errors, far below the effect of any mistake.
REWRITE_LIMIT = 1e-9


def rewrite_proven(job: Job, stage: Stage) -> Rewritten:
    """Rewrite the model, and prove in float64 that it is still the same function.

    The proof compares the model that is rewritten in float64, where rounding plays no role. The
    rounding of folded weights is judged by `prove`, in units of the rounding of the model itself.
    """
    spec, clip = job.spec, job.inputs.batch(1)
    skip = rewrites_to_skip(spec, job.model)
    rewritten = rewrite_measured(job.model, skip, spec.run_batch)

    def run(model: VideoClassifier, precision: str = "fp64") -> np.ndarray:
        with EagerRunner(model, job.inputs.shapes, precision) as runner:
            return runner.run(clip)["logits"]

    truth = run(job.model)
    exact = rewrite(in_precision(job.model, "fp64"), skip, spec.run_batch)
    error = relative_error(run(exact), truth)
    # A model that float32 does not determine may fail in float64 too: leave that to parity.
    if not error <= REWRITE_LIMIT and relative_error(run(job.model, "fp32"), truth) <= (
        ILL_CONDITIONED
    ):
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


def prove(
    spec: ExportSpec,
    model: VideoClassifier,
    inputs: Inputs,
    calibration: Calibration | None,
    opened: Opened,
    stage: Stage,
) -> tuple[Parity, ...]:
    """Judge every runner against the truth, in units of the rounding of this model.

    The rows of the runtimes that could not be opened come last.
    """
    stage.progress(None, "float64 truth")
    clips = inputs.arrays
    with (
        EagerRunner(model, inputs.shapes, "fp64") as truth,
        EagerRunner(model, inputs.shapes) as fp32,
    ):
        reference = make_reference(truth, fp32, inputs.names, clips)
    references: dict[Int8 | None, Reference] = {}
    parity = []
    for runner in opened.runners:
        stage.progress(None, f"{runner.name} {runner.device}")
        int8 = None if calibration is None else _rounding(runner.name, calibration.ranges)
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
    return (*parity, *opened.absences)


def _rounding(runtime: str, ranges: Ranges) -> Int8:
    """Say how the int8 graph of a runtime rounds: see `int8_products.FORMS`."""
    if runtime == OnnxRuntimeRunner.name:
        return Int8(ranges)
    return Int8(ranges, symmetric=True, weight_levels=127)


def _batch_sizes(spec: ExportSpec, *, bounded: bool = False) -> list[int]:
    """List the batch of a static graph, or those of 1, 2, 3, OPT and MAX that are accepted."""
    profile = spec.dynamic_batch
    if profile is None:
        return [spec.run_batch]
    least = profile.min if bounded else 1
    return sorted(n for n in {1, 2, 3, profile.opt, profile.max} if least <= n <= profile.max)
