"""What the logits of a model mean: classes, of which one is right; labels; or values.

This file imports the standard library only, so that programs without torch can use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from model.config import ConfigError, check_choice

TaskName = Literal["single-label", "multi-label", "regression"]
TASK_NAMES: tuple[str, ...] = get_args(TaskName)
# `problem_type` of a Hugging Face configuration.
PROBLEM_TYPES: Mapping[str, TaskName] = {
    "single_label_classification": "single-label",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}
# Losses of published training programs (MODEL.LOSS_FUNC of SlowFast, `type` of mmaction2's loss).
LOSSES: Mapping[str, TaskName] = {
    "cross_entropy": "single-label",
    "soft_cross_entropy": "single-label",
    "crossentropyloss": "single-label",
    "bce": "multi-label",
    "bce_logit": "multi-label",
    "bcelosswithlogits": "multi-label",
    "mse": "regression",
}


def assume_task(outputs: int) -> TaskName:
    """Return the task of a model whose checkpoint does not tell it.

    One output has no other class to compare with, so it is a value. Hugging Face assumes the same.
    """
    return "single-label" if outputs > 1 else "regression"


def check_task(task: Any, outputs: int) -> TaskName:  # noqa: ANN401  # of a user or a file
    """Return the task if it exists and fits the number of outputs.

    Raises:
        ConfigError: if not.
    """
    check_choice("task", task, TASK_NAMES)
    if task == "single-label" and outputs == 1:
        raise ConfigError(
            "task single-label needs at least two classes: got one output, whose softmax is always "
            "1; expected multi-label (sigmoid) or regression (its value)"
        )
    return task
