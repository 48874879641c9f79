"""A model in the precision of an export: what is traced, and what eager PyTorch is judged in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from exporter.errors import UsageError
from model.classifier import VideoClassifier
from model.config import ConfigError
from model.precision import lower_precision, matching_paths, rounded_modules

_WHOLE = {"fp64": torch.float64, "fp32": torch.float32}
_LOWER = {"fp16": torch.float16, "bf16": torch.bfloat16}


def in_precision(
    model: VideoClassifier, precision: str, keep_fp32: Sequence[str] = ()
) -> VideoClassifier:
    """A copy of a model that computes in `precision`, in evaluation mode.

    Args:
        model: The model; its weights are float32.
        precision: `fp64` (the truth), `fp32`, `fp16`, `bf16`, or `int8`: float32 whose linear maps
            see weights and activations rounded to 8 bits.
        keep_fp32: Regular expressions over module paths that stay in float32.

    Returns:
        The copy. It takes `fp64` clips for the truth, float32 ones otherwise.

    Raises:
        UsageError: if an expression is not valid, or matches no module.
    """
    model = copy.deepcopy(model).eval()
    if precision in _WHOLE:
        return model.to(_WHOLE[precision])
    try:
        if precision == "int8":
            _round_to_int8(model, keep_fp32)
        else:
            lower_precision(model, _LOWER[precision], keep_fp32)
    except ConfigError as error:
        raise UsageError(f"--keep-fp32: {error}") from error
    return model


def kept_modules(model: VideoClassifier, keep_fp32: Sequence[str]) -> frozenset[str]:
    """The paths of the modules that stay in float32.

    Raises:
        UsageError: if an expression is not valid, or matches no module.
    """
    try:
        return frozenset(matching_paths(model, keep_fp32))
    except ConfigError as error:
        raise UsageError(f"--keep-fp32: {error}") from error


def _round_to_int8(model: VideoClassifier, keep_fp32: Sequence[str]) -> None:
    kept = set(matching_paths(model, keep_fp32))
    for path, module in rounded_modules(model).items():
        if path not in kept:
            module.forward = partial(_forward_in_int8, module.forward)


def _forward_in_int8(forward: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
    with _Int8Rounding():
        return forward(*arguments)


class _Int8Rounding(TorchFunctionMode):
    """Rounds what linear maps read: weights by output channel, activations as one tensor."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if func is F.linear:
            x, weight, *bias = args
            args = (round_to_int8(x), round_to_int8(weight, dim=1), *bias)
        return func(*args, **(kwargs or {}))


def round_to_int8(x: Tensor, dim: int | None = None) -> Tensor:
    """`x` on a symmetric grid of 255 values up to its largest, of the tensor or along `dim`."""
    largest = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    step = (largest / 127).clamp_min(torch.finfo(x.dtype).tiny)
    return (x / step).round() * step
