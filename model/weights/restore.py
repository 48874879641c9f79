"""Restore weights that a wrapper stores in parts, under the names of the model.

Pruning stores a weight and its mask; weight norm (Salimans and Kingma 2016, arXiv:1602.07868,
equation 2) a direction `v` and a length `g`; PEFT a trained module beside the original one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from model.config import ConfigError
from model.weights.file import WeightsFile

_PARAMETRISED = re.compile(r"(^|\.)(parametrizations\.|weight_orig$)")
_COUNTERS = ("total_ops", "total_params")  # buffers of the profiler thop
_SAVED = re.compile(r"(.+)\.modules_to_save\.\w+\.(\w+)")
_ORIGINAL = re.compile(r"(.+)\.original_module\.(\w+)")
_Join = Callable[[Tensor, Tensor], Tensor | None]
# Endings of the two parts -> ending of the weight.
_Endings = tuple[tuple[str, str, str], ...]
_PRUNED: _Endings = (("_orig", "_mask", ""),)
_NORMED: _Endings = (
    ("weight_v", "weight_g", "weight"),
    ("parametrizations.weight.original1", "parametrizations.weight.original0", "weight"),
)


def restore(weights: WeightsFile) -> WeightsFile:
    """Return the file with whole weights, and a note on what was restored.

    Raises:
        ConfigError: if a weight is in parts of another kind.
    """
    state = {
        name: tensor
        for name, tensor in weights.state.items()
        if name.rpartition(".")[2] not in _COUNTERS
    }
    notes: tuple[str, ...] = ()
    kinds: tuple[tuple[str, _Endings, _Join], ...] = (
        ("pruning", _PRUNED, _prune),
        ("weight norm", _NORMED, _normalise),
    )
    if trained := _take_trained(state):
        notes += (f"trained modules of PEFT taken: {trained} tensors",)
    for kind, endings, join in kinds:
        if joined := sum(_join(state, *each, join) for each in endings):
            notes += (f"weights of {kind} computed from their parts: {joined}",)
    if left := next((name for name in state if _PARAMETRISED.search(name)), None):
        raise ConfigError(
            f"holds a weight in parts, as {left}, that this package does not join; save the model "
            "after remove_parametrizations or remove_spectral_norm of PyTorch"
        )
    return replace(weights, state=state, notes=weights.notes + notes)


def _take_trained(state: dict[str, Tensor]) -> int:
    """Put the trained copies of modules in the place of the original ones."""
    saved = {name: match for name in state if (match := _SAVED.fullmatch(name))}
    places = {name: f"{match[1]}.{match[2]}" for name, match in saved.items()}
    if len(set(places.values())) < len(places):  # of several adapters
        return 0
    state |= {place: state.pop(name) for name, place in places.items()}
    for name in [name for name in state if _ORIGINAL.fullmatch(name)]:
        if _ORIGINAL.sub(r"\1.\2", name) in state:
            del state[name]
    return len(places)


def _join(state: dict[str, Tensor], main: str, other: str, whole: str, join: _Join) -> int:
    """Replace all pairs of parts by their weight; return how many."""
    joined = 0
    for name in [name for name in state if name.endswith(main)]:
        start = name.removesuffix(main)
        part, place = state.get(start + other), start + whole
        if part is None or place in state:
            continue
        if (weight := join(state[name], part)) is not None:
            del state[name], state[start + other]
            state[place] = weight
            joined += 1
    return joined


def _prune(weight: Tensor, mask: Tensor) -> Tensor | None:
    return weight * mask.to(weight.dtype) if weight.shape == mask.shape else None


def _normalise(v: Tensor, g: Tensor) -> Tensor | None:
    """Compute `g v / |v|`; the norm is over the axes of `v` along which `g` has one number."""
    axes = [axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis : axis + 1] == (1,)]
    if g.ndim not in (0, v.ndim) or len(axes) < v.ndim - 1 or not axes:
        return None
    v, g = v.float(), g.float()
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))
