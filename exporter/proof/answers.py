"""Whether a runtime gives the answer of the truth, by what the logits mean (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.task import TaskName


def compare_answers(
    truth: np.ndarray, worst: np.ndarray, outputs: Sequence[np.ndarray], task: TaskName | None
) -> dict[str, Any]:
    """Compare the answers of one input; return entries of an `InputParity`.

    Args:
        truth: The logits of the truth, `(classes,)`.
        worst: The output with the largest error.
        outputs: All outputs for this input.
        task: What the logits mean. Values, and outputs that are no logits (None), have no other
            answer than their error.
    """
    answer = {"single-label": _ranks, "multi-label": _signs}.get(task or "")
    return answer(truth, worst, outputs) if answer else {}


def _ranks(truth: np.ndarray, worst: np.ndarray, outputs: Sequence[np.ndarray]) -> dict[str, Any]:
    top = np.argsort(-truth, kind="stable")
    ours = np.argsort(-worst, kind="stable")
    kept = min(5, truth.size)
    norm = np.linalg.norm(truth)
    margin = (truth[top[0]] - truth[top[1]]) / norm if truth.size > 1 and norm > 0 else 0.0
    return {
        "top1_equal": all(int(output.argmax()) == int(top[0]) for output in outputs),
        "top5_overlap": len(set(top[:kept]) & set(ours[:kept])) / kept,
        "margin": float(margin),
    }


def _signs(truth: np.ndarray, _worst: np.ndarray, outputs: Sequence[np.ndarray]) -> dict[str, Any]:
    """Compare which labels apply; the margin is the largest |t_j| / |t| of a sign that differs."""
    differs = np.any([(output >= 0) != (truth >= 0) for output in outputs], axis=0)
    norm = np.linalg.norm(truth)
    margin = np.abs(truth[differs]).max() / norm if differs.any() and norm > 0 else 0.0
    return {"signs_equal": float(1 - differs.mean()), "margin": float(margin)}
