"""The errors of all inputs together: their median, and their bias (pure).

Rounding errors have no direction in common, and most inputs have less than the worst one. A scaled
output moves every input in the same way, by less than the tolerance of the worst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Distribution:
    """Errors of outputs `y` against a truth `t`, over the inputs.

    Attributes:
        median: The median of `|y - t| / |t|`.
        bias: The mean of `(y - t) . t / |t|^2`: the scale that all inputs have in common, minus 1.
        spread: The root mean square of `|y - t| / |t|`, over the root of the number of inputs: the
            bias that errors without a common direction have at most.
    """

    median: float
    bias: float
    spread: float


def measure(outputs: np.ndarray, truth: np.ndarray) -> Distribution:
    """Measure the errors of outputs `(n, values)`; inputs whose truth is zero do not count."""
    with np.errstate(over="ignore"):
        squares = np.square(truth, dtype=np.float64).sum(-1)
    counted = squares > 0
    if not counted.any():
        return Distribution(0.0, 0.0, 0.0)
    t, y, squares = truth[counted], outputs[counted].astype(np.float64), squares[counted]
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity stay
        errors = np.sqrt(np.square(y - t).sum(-1) / squares)
        bias = float((((y - t) * t).sum(-1) / squares).mean())
    return Distribution(
        median=float(np.median(errors)),
        bias=bias,
        spread=math.sqrt(float(np.square(errors).mean()) / len(errors)),
    )


def find_system(found: Distribution, floor: Distribution, factor: float, tiny: float) -> str:
    """Say what is more than rounding in the errors of a runtime; empty if nothing is.

    Args:
        found: The errors of the runtime.
        floor: Those of eager PyTorch in the same precision.
        factor: How much larger than the floor an error may be.
        tiny: The error that is always allowed.
    """
    median = max(factor * floor.median, tiny)
    if found.median > median:
        return f"the median error {found.median:.1e} is above {median:.1e}"
    bias = max(factor * max(abs(floor.bias), floor.spread), tiny)
    if abs(found.bias) > bias:
        return f"all outputs are scaled by {1 + found.bias:.4g}: rounding explains {bias:.1e} of it"
    return ""
