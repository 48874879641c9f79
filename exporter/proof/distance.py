"""Distances of outputs from their truth (pure)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

SMALL = 0.5  # of the median length of the truth: a shorter one has this length in an error


def relative_error(output: np.ndarray, truth: np.ndarray, least: float = 0.0) -> float:
    """Compute `|y - t| / |t|`: 0 if both are zero, infinite if only t is, NaN if y has a NaN.

    A truth shorter than `least` counts as if it had that length, unless it is zero.
    """
    distance = float(np.linalg.norm(output.astype(np.float64) - truth))
    norm = float(np.linalg.norm(truth.astype(np.float64)))
    if norm == 0.0:
        return 0.0 if distance == 0.0 else distance * float("inf")
    return distance / max(norm, least)


def least_length(truth: np.ndarray) -> float:
    """The least length of a row that counts, for rows `(n, values)` of n inputs.

    Where the values of an input nearly cancel, their rounding does not: it follows the larger
    numbers from which they were computed. An error relative to them would be large by chance.
    """
    lengths = np.linalg.norm(truth.astype(np.float64), axis=-1)
    return SMALL * float(np.median(lengths)) if len(lengths) else 0.0


def worst_error(logits: np.ndarray, truth: np.ndarray) -> float:
    """Find the largest relative error of rows `(n, values)`; NaN if one has a NaN."""
    least = least_length(truth)
    return largest(relative_error(y, t, least) for y, t in zip(logits, truth, strict=True))


def relative_spread(truth: np.ndarray) -> float:
    """Find the largest relative distance of rows `(n, values)` from their mean."""
    return max(relative_error(truth.mean(0), row) for row in truth)


def cosine(output: np.ndarray, truth: np.ndarray) -> float:
    """Compute the cosine of the angle between `y` and `t`; 1 if both are zero."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity give NaN
        norms = float(np.linalg.norm(output.astype(np.float64)) * np.linalg.norm(truth))
        if norms == 0.0:
            return 1.0 if np.array_equal(output, truth) else 0.0
        return float(output.astype(np.float64) @ truth / norms)


def mean(values: Iterable[float | None]) -> float | None:
    """Give the mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def largest(values: Iterable[float]) -> float:
    """Find the largest value; NaN if one is NaN (Python's `max` may miss it) or none is given."""
    return float(np.max([*values] or [np.nan]))


def nan_is_worst(error: float) -> float:
    """Give an error by which to sort: infinity for NaN."""
    return float("inf") if np.isnan(error) else error
