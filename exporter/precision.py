"""A model in the precision of an export, for the trace and for the rounding floor."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from exporter.errors import UsageError
from model.classifier import VideoClassifier
from model.config import ConfigError
from model.precision import lower_precision, matching_paths, rounded_modules

Ranges = Mapping["Site", tuple[float, float]]
Site = tuple[str, int]  # path of a module, and which of its linear maps in one run
Change = Callable[[Site, Tensor, Tensor], tuple[Tensor, Tensor]]
_WHOLE = {"fp64": torch.float64, "fp32": torch.float32}
REST_OF_INT8 = "fp16"  # TensorRT: a GPU gains from int8 where all the rest is in half precision
_LOWER = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Int8:
    """How activations and weights are rounded to 8 bits.

    `ranges` holds the smallest and the largest activation of each linear map on the calibration
    clips, by module and call; values outside are clipped. `symmetric` puts zero in the middle, as
    TensorRT does. `weight_levels` is the number of levels on either side of zero. `rest` is the
    precision of all that is not an integer product.
    """

    ranges: Ranges
    symmetric: bool = False
    weight_levels: int = 63
    rest: str = "fp32"

    @classmethod
    def of(cls, form: str, ranges: Ranges) -> Self:
        """Say how a graph of a form rounds: see `exporter.proof.runtimes.rounding_form`."""
        if form == "int8-tensorrt":
            return cls(ranges, symmetric=True, weight_levels=127, rest=REST_OF_INT8)
        return cls(ranges, rest="bf16" if form == "int8-bf16" else "fp32")


def in_precision(
    model: VideoClassifier,
    precision: str,
    keep_fp32: Sequence[str] = (),
    int8: Int8 | None = None,
) -> VideoClassifier:
    """Copy a model so that it computes in `precision`, in evaluation mode.

    Args:
        model: The model; its weights are float32.
        precision: `fp64` (the truth), `fp32`, `fp16`, `bf16`, or `int8`: the precision
            `int8.rest`, with weights and activations of the linear maps rounded to 8 bits.
        keep_fp32: Regular expressions over the paths of modules that stay in float32.
        int8: How `int8` rounds.

    Returns:
        The copy. It takes float64 clips for `fp64`, float32 clips otherwise.

    Raises:
        UsageError: if an expression is not valid, or matches no module.
    """
    model = copy.deepcopy(model).eval()
    if precision in _WHOLE:
        return model.to(_WHOLE[precision])
    kept = kept_modules(model, keep_fp32)
    if precision in _LOWER:
        lower_precision(model, _LOWER[precision], keep_fp32)
    elif int8 is None:
        raise ValueError("int8 needs the ranges of the activations: see observe_ranges")
    else:
        if int8.rest in _LOWER:
            lower_precision(model, _LOWER[int8.rest], keep_fp32)
        _listen(model, partial(_round, int8), kept)
    return model


def observe_ranges(
    model: VideoClassifier, clips: Mapping[str, np.ndarray]
) -> dict[Site, tuple[float, float]]:
    """Find the smallest and the largest activation of each linear map on n clips, and zero."""
    ranges: dict[Site, tuple[float, float]] = {}

    def note(site: Site, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        low, high = ranges.get(site, (0.0, 0.0))
        ranges[site] = min(low, x.min().item()), max(high, x.max().item())
        return x, weight

    model = copy.deepcopy(model).eval()
    _listen(model, note)
    with torch.inference_mode():
        for i in range(len(clips["video"])):
            model(*(torch.from_numpy(array[i : i + 1]) for array in clips.values()))
    return ranges


def kept_modules(model: VideoClassifier, keep_fp32: Sequence[str]) -> frozenset[str]:
    """Find the paths of the modules that stay in float32.

    Raises:
        UsageError: if an expression is not valid, or matches no module.
    """
    try:
        return frozenset(matching_paths(model, keep_fp32))
    except ConfigError as error:
        raise UsageError(f"--keep-fp32: {error}") from error


def _round(int8: Int8, site: Site, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round to 8 bits: activations with one scale, weights with a scale per output channel."""
    low, high = int8.ranges[site]
    if int8.symmetric:
        step, zero, least, most = max(-low, high) / 127, 0, -127, 127
    else:
        step, least, most = (high - low) / 255, 0, 255
        zero = round(-low / step) if step else 0
    if step:
        x = ((x / step).round() + zero).clamp(least, most).sub(zero) * step
    largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
    steps = (largest / int8.weight_levels).clamp_min(torch.finfo(weight.dtype).tiny)
    return x, (weight / steps).round() * steps


def _listen(model: VideoClassifier, change: Change, kept: Collection[str] = ()) -> None:
    """Pass the inputs of the linear maps in the rounded modules through `change`."""
    calls: Counter[str] = Counter()  # of linear maps in each module during one run

    def run(path: str, forward: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401  # its own
        with _LinearMaps(path, calls, change):
            return forward(*arguments)

    model.register_forward_pre_hook(lambda _model, _arguments: calls.clear())
    for path, module in rounded_modules(model).items():
        if path not in kept:
            module.forward = partial(run, path, module.forward)


class _LinearMaps(TorchFunctionMode):
    """Passes the inputs of every linear map through `change`."""

    def __init__(self, path: str, calls: Counter[str], change: Change) -> None:
        super().__init__()
        self.path, self.calls, self.change = path, calls, change

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever the function gives
        if func in (F.linear, F.conv2d):
            x, weight, *rest = args
            site = self.path, self.calls[self.path]
            self.calls[self.path] += 1
            changed_x, weight = self.change(site, x, weight)
            # The pixels of the patch embedding are not calibrated: they have no fixed range.
            args = (changed_x if func is F.linear else x, weight, *rest)
        return func(*args, **(kwargs or {}))
