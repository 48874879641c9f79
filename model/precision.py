"""Lower precision: which modules may compute in it, and what stays in float32 inside them.

A model of lower precision keeps its tokens (the residual stream), its normalisations, its positions
and its head in float32. The `Rounded` modules take most of the time: attention, feed-forward, the
projections between them, and the patch embedding. A `Rounded` module casts its input to the type of
its weights and computes in that type. The sum with the tokens casts its output back. Operations
inside a module that overflow or lose digits are computed in float32: see `at_least_float32`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from model.config import ConfigError, nearest

LOWER = (torch.float16, torch.bfloat16)


class Rounded(nn.Module):
    """A mixin for modules whose matrices and activations may be in lower precision."""


class RoundedLinear(Rounded, nn.Linear):
    """A linear map that takes tokens in any precision and computes in its own."""

    def forward(self, input: Tensor) -> Tensor:  # the name of the base class
        """`(..., i) -> (..., o)` in the type of the weight."""
        return super().forward(as_type_of(self.weight, input))


class RoundedConv2d(Rounded, nn.Conv2d):
    """A convolution that takes images in any precision and computes in its own.

    It reads its operands with the channels first: PyTorch 2.13 computes a bf16 convolution of
    operands with the channels last wrongly on a CPU with avx512_bf16, if a row of a patch has 64
    numbers and a frame is one patch wide.
    """

    def forward(self, input: Tensor) -> Tensor:  # the name of the base class
        """`(b, c, h, w) -> (b, d, h, w)` in the type of the weight."""
        return super().forward(as_type_of(self.weight, input).contiguous())


def as_type_of(weight: Tensor, x: Tensor) -> Tensor:
    """`x` in the precision of `weight`; `x` itself where the precisions are equal."""
    return x.to(weight.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 where it is in lower precision; else `x` itself."""
    return x.float() if x.dtype in LOWER else x


def rounded_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that may be in lower precision, by their path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Rounded)}


def halved_modules(model: nn.Module) -> list[str]:
    """The paths of the modules that are in lower precision."""
    return [
        path
        for path, module in rounded_modules(model).items()
        if any(tensor.dtype in LOWER for tensor in (*module.parameters(), *module.buffers()))
    ]


def lower_precision(model: nn.Module, dtype: torch.dtype, keep: Sequence[str] = ()) -> list[str]:
    """Cast the `Rounded` modules of a model to `dtype`, in place, except the modules to keep.

    Args:
        model: A model in float32.
        dtype: `torch.float16` or `torch.bfloat16`.
        keep: Regular expressions over module paths. An expression keeps a module in float32 where
            it matches the whole path of the module, or of a module that contains it.

    Returns:
        The paths of the modules that are kept.

    Raises:
        ConfigError: if an expression is not valid, or matches no module.
    """
    kept = set(matching_paths(model, keep))
    for path, module in rounded_modules(model).items():
        if path not in kept:
            module.to(dtype)
    return sorted(kept)


def matching_paths(model: nn.Module, patterns: Iterable[str]) -> Iterator[str]:
    """The paths of the `Rounded` modules that one of the patterns matches.

    Raises:
        ConfigError: if a pattern is not valid, or matches no module.
    """
    paths = list(rounded_modules(model))
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{pattern!r} is not a regular expression: {error}") from error
        found = [path for path in paths if any(map(expression.fullmatch, _ancestry(path)))]
        if not found:
            closest = nearest(pattern, [name for path in paths for name in _ancestry(path)])
            raise ConfigError(
                f"{pattern!r} matches no module that could be of lower precision"
                + (f"; the nearest is {closest!r}" if closest else "")
            )
        yield from found


def _ancestry(path: str) -> Iterator[str]:
    """A path and the paths of the modules that contain it: `a.b.c`, `a.b`, `a`."""
    while path:
        yield path
        path = path.rpartition(".")[0]
