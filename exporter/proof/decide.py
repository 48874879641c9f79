"""The errors of one output -> verdict and reason (pure)."""

from __future__ import annotations

import numpy as np

from exporter.proof.distance import relative_spread
from exporter.results import InputParity, Verdict

FLOOR_FACTOR = 4.0
TINY = {"fp64": 1e-9, "fp32": 1e-6, "fp16": 2e-3, "bf16": 1.6e-2, "int8": 1.6e-2}
ILL_CONDITIONED = 1e-3


def decide(
    per_input: tuple[InputParity, ...],
    *,
    fp32_floor: float,
    floor: float,
    tolerance: float,
    invariance: float,
    min_inputs: int,
    output: str,
) -> tuple[Verdict, str]:
    """Give the verdict on one output of a runtime, and the reason unless it passes.

    Args:
        per_input: The errors of each input.
        fp32_floor: The error of eager PyTorch in float32.
        floor: The error of eager PyTorch in the precision of the runtime.
        tolerance: The largest error that passes.
        invariance: The largest relative distance between two runs of one input.
        min_inputs: Fewer inputs prove nothing.
        output: The name of the output.
    """
    if len(per_input) < min_inputs:
        return "fail", f"compared {len(per_input)} inputs, needs at least {min_inputs}"
    if not np.isfinite(fp32_floor):
        return (
            "fail",
            f"NaN or Inf among the {output} of eager PyTorch itself, in float32 or float64: it is "
            "the model's own, and no export of it can be proven",
        )
    if not np.isfinite(floor):
        return (
            "fail",
            f"NaN or Inf among the {output} of eager PyTorch in this precision too: tsformer "
            "ladder names the module, tsformer tune-precision keeps it in fp32",
        )
    if not np.isfinite([invariance, *(entry.rel_l2 for entry in per_input)]).all():
        return "fail", f"NaN or Inf among the {output}"
    if fp32_floor > ILL_CONDITIONED:
        return (
            "ill-conditioned",
            f"two roundings of the eager model itself differ by {fp32_floor:.1e} (limit "
            f"{ILL_CONDITIONED:.0e}): this precision does not determine its outputs",
        )
    worst = max(per_input, key=lambda entry: entry.rel_l2)
    if worst.rel_l2 > tolerance:
        return "fail", f"{worst.name}: error {worst.rel_l2:.1e} above tolerance {tolerance:.1e}"
    least = max(floor, TINY["fp64"])  # the truth is rounded too, and tells no smaller margin
    changed = [entry for entry in per_input if entry.answer_differs and entry.margin > least]
    if changed:
        what = "top-1" if changed[0].signs_equal is None else "the sign of a logit"
        return "fail", f"{what} differs on {', '.join(entry.name for entry in changed)}"
    if invariance > tolerance:
        return (
            "fail",
            f"a clip's {output} depend on the clips beside it: {invariance:.1e} above tolerance "
            f"{tolerance:.1e}",
        )
    return "pass", ""


def look_at_spread(
    truth: np.ndarray, fp32_floor: float, tolerance: float, output: str
) -> tuple[Verdict, str]:
    """Check that the outputs of the inputs differ enough for a comparison to prove something."""
    spread = relative_spread(truth)
    if spread <= max(FLOOR_FACTOR * fp32_floor, TINY["fp32"]):
        return (
            "fail",
            f"the {output} do not depend on the input (they spread by {spread:.1e}), so nothing "
            "about the graph was compared",
        )
    if spread <= tolerance:
        return (
            "pass",
            f"the {output} of these inputs differ by no more ({spread:.1e}) than rounding at this "
            "precision: the comparison module by module says more",
        )
    return "pass", ""
