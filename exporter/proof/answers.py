"""Whether a runtime gives the answer of the truth, by what the logits mean (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.task import TaskName


def compare_answers(
    truth: np.ndarray,
    worst: np.ndarray,
    outputs: Sequence[np.ndarray],
    task: TaskName | None,
    least: float = 0.0,
) -> dict[str, Any]:
    """Compare the answers of one input; return entries of an `InputParity`.

    Args:
        truth: The logits of the truth, `(classes,)`.
        worst: The output with the largest error.
        outputs: All outputs for this input.
        task: What the logits mean. Values, and outputs that are no logits (None), have no other
            answer than their error.
        least: The least length of a truth, as in `relative_error`: margins are compared with
            errors, so both are relative to the same length.
    """
    answer = {"single-label": _ranks, "multi-label": _signs}.get(task or "")
    length = max(float(np.linalg.norm(truth)), least) or 1.0  # without a length every margin is 0
    return answer(truth, worst, outputs, length) if answer else {}


def _ranks(
    truth: np.ndarray, worst: np.ndarray, outputs: Sequence[np.ndarray], length: float
) -> dict[str, Any]:
    top = np.argsort(-truth, kind="stable")
    ours = np.argsort(-worst, kind="stable")
    kept = min(5, truth.size)
    margin = (truth[top[0]] - truth[top[1]]) / length if truth.size > 1 else 0.0
    return {
        "top1_equal": all(int(output.argmax()) == int(top[0]) for output in outputs),
        "top5_overlap": len(set(top[:kept]) & set(ours[:kept])) / kept,
        "margin": float(margin),
    }


def _signs(
    truth: np.ndarray, _worst: np.ndarray, outputs: Sequence[np.ndarray], length: float
) -> dict[str, Any]:
    """Compare which labels apply; the margin is that of the largest logit whose sign differs."""
    differs = np.any([(output >= 0) != (truth >= 0) for output in outputs], axis=0)
    margin = np.abs(truth[differs]).max() / length if differs.any() else 0.0
    return {"signs_equal": float(1 - differs.mean()), "margin": float(margin)}
