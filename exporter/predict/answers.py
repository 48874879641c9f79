"""Logits -> scores, by what the logits mean (numpy only)."""

from __future__ import annotations

import numpy as np

from model.task import TaskName

DEFAULT_TOP = 5
THRESHOLD = 0.5  # a label with this sigmoid or more is said to apply: its logit is at least 0


def scores_of(logits: np.ndarray, task: TaskName, average: str = "logits") -> np.ndarray:
    """Compute the scores of a clip from its views: softmax, sigmoid, or the values themselves.

    `(v, classes) -> (classes,)` float64. The `logits` of several views are averaged, or their
    `probabilities`, as `Views.average` says.
    """
    if average == "logits":
        logits = logits.astype(np.float64).mean(0, keepdims=True)
    if task == "single-label":
        scores = softmax(logits)
    else:
        scores = sigmoid(logits) if task == "multi-label" else logits.astype(np.float64)
    return scores.mean(0)


def mean_of_views(values: np.ndarray) -> np.ndarray:
    """Average an output over the views of a clip: `(v, ...) -> (...)` float32, as the logits."""
    return values[0] if len(values) == 1 else values.astype(np.float64).mean(0).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute `exp(x_i) / sum_j exp(x_j)` over the last axis, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Compute `1 / (1 + exp(-x))` of each value, in float64 and without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def order_of(scores: np.ndarray, task: TaskName, top: int) -> np.ndarray:
    """Return the places of the outputs to show: the best first, values in their own order."""
    if task == "regression":
        return np.arange(len(scores))
    return np.argsort(-scores, kind="stable")[:top]
