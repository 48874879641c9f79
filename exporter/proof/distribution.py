"""The errors of all inputs together: their median, and their bias (pure).

Rounding errors have no direction in common, and most inputs have less than the worst one. A scaled
output moves every input in the same way, by less than the tolerance of the worst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from exporter.proof.distance import least_length


@dataclass(frozen=True)
class Distribution:
    """Errors of outputs `y` against a truth `t`, over the inputs.

    The length of a truth is at least `least`, see `distance.least_length`. Where the values of an
    input nearly cancel, its error says little of a common scale, and it counts less:

        w = (|t| / length)^2

    Attributes:
        median: The median of `|y - t| / length`.
        bias: The mean of `(y - t) . t / |t|^2`, weighted by w: the scale that all inputs have in
            common, minus 1.
        spread: The root of the sum of `(w |y - t| / |t|)^2`, over the sum of w: the bias that
            errors without a common direction have at most. With equal weights it is the root mean
            square of the errors, over the root of the number of inputs.
    """

    median: float
    bias: float
    spread: float


def measure(outputs: np.ndarray, truth: np.ndarray) -> Distribution:
    """Measure the errors of outputs `(n, values)`; inputs whose truth is zero do not count."""
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(truth.astype(np.float64), axis=-1)
    counted = norms > 0
    if not counted.any():
        return Distribution(0.0, 0.0, 0.0)
    t, y, norms = truth[counted], outputs[counted].astype(np.float64), norms[counted]
    lengths = np.maximum(norms, least_length(truth))
    weights = np.square(norms / lengths)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity stay
        distances = np.linalg.norm(y - t, axis=-1) / lengths
        along = ((y - t) * t).sum(-1) / np.square(lengths)
        apart = np.square(distances * norms / lengths).sum()
    return Distribution(
        median=float(np.median(distances)),
        bias=float(along.sum() / weights.sum()),
        spread=math.sqrt(float(apart)) / float(weights.sum()),
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
