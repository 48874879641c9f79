"""Rewrites at export: the same function, laid out for the runtimes. One per file.

A rewrite changes a model in place, before its precision is lowered and before it is traced, and
gives the number of places it fired at. Modules keep their paths, so that whatever names them,
`--keep-fp32` or the ladder, finds them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch

from exporter.rewrite.measure import measure
from exporter.rewrite.rules.bias_apart import bias_apart
from exporter.rewrite.rules.class_token import class_token
from exporter.rewrite.rules.cut_attention import cut_attention
from exporter.rewrite.rules.cut_feed_forward import cut_feed_forward
from exporter.rewrite.rules.few_features import few_features
from exporter.rewrite.rules.fold_fc import fold_fc
from exporter.rewrite.rules.fold_global_key import fold_global_key
from exporter.rewrite.rules.fold_norm import fold_norm
from exporter.rewrite.rules.fold_pixels import fold_pixels
from exporter.rewrite.rules.frame_weights import frame_weights
from exporter.rewrite.rules.heads_first import heads_first
from exporter.rewrite.rules.pooled_rotation import pooled_rotation
from model.classifier import VideoClassifier
from model.config import nearest

REWRITES: Mapping[str, Callable[..., int]] = {
    change.__name__: change
    for change in (
        class_token,  # first: the others look whether one token is asked for
        fold_norm,  # before those that make matrices of the projections
        fold_fc,
        frame_weights,  # before those that rotate tokens
        heads_first,
        few_features,
        pooled_rotation,
        fold_global_key,
        bias_apart,
        cut_attention,
        cut_feed_forward,
        fold_pixels,
    )
}

# What suits the caches and threads of a CPU, and is work for nothing elsewhere.
FOR_A_CPU = frozenset({"bias_apart", "fold_norm", "cut_attention", "cut_feed_forward"})


@dataclass(frozen=True)
class Fired:
    """One rewrite, at how many places it fired, and what that saves for each clip."""

    name: str
    places: int
    operations_saved: int
    flops_saved: int
    bytes_saved: int


@torch.no_grad()
def rewrite(model: VideoClassifier, skip: Collection[str] = (), clips: int = 1) -> VideoClassifier:
    """Rewrite a copy of a model.

    Args:
        model: The model, in whole precision; it is left as it is.
        skip: Names of rewrites to leave out.
        clips: Clips of a run, as far as that is known.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: if a name is unknown.
    """
    model = copy.deepcopy(model).eval()
    for _ in _rewrite(model, skip, clips):
        pass
    return model


@torch.no_grad()
def rewrite_measured(
    model: VideoClassifier, skip: Collection[str] = (), clips: int = 1
) -> tuple[VideoClassifier, tuple[Fired, ...]]:
    """Rewrite a copy of a model as `rewrite` does, and measure what each rewrite saves.

    Returns:
        The copy, and the rewrites that fired, in order.
    """
    model = copy.deepcopy(model).eval()
    fired, cost = [], measure(model)
    for name, places in _rewrite(model, skip, clips):
        before, cost = cost, measure(model)
        fired.append(Fired(name, places, *(before - cost)))
    return model, tuple(fired)


def _rewrite(
    model: VideoClassifier, skip: Collection[str], clips: int
) -> Iterator[tuple[str, int]]:
    """Rewrite in place; gives each rewrite that fired, when it has, and at how many places."""
    for name in skip:
        if name not in REWRITES:
            closest = nearest(name, list(REWRITES))
            hint = f"; the nearest is {closest!r}" if closest else ""
            raise ValueError(f"unknown rewrite {name!r}: there are {', '.join(REWRITES)}{hint}")
    for name, change in REWRITES.items():
        of_a_run = {"clips": clips} if change in {cut_attention, cut_feed_forward} else {}
        places = 0 if name in skip else change(model, **of_a_run)
        if places:
            yield name, places
