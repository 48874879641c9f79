"""Rewrites at export: the same function, laid out for the runtimes. One per file.

A rewrite changes a model in place, before its precision is lowered and before it is traced, and
gives the number of places it fired at. Modules keep their paths, so that whatever names them,
`--keep-fp32` or the ladder, finds them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

from exporter.rewrite.bias_apart import bias_apart
from exporter.rewrite.class_token import class_token
from exporter.rewrite.cut_attention import cut_attention
from exporter.rewrite.cut_feed_forward import cut_feed_forward
from exporter.rewrite.few_features import few_features
from exporter.rewrite.fold_fc import fold_fc
from exporter.rewrite.fold_global_key import fold_global_key
from exporter.rewrite.fold_norm import fold_norm
from exporter.rewrite.fold_pixels import fold_pixels
from exporter.rewrite.frame_weights import frame_weights
from exporter.rewrite.heads_first import heads_first
from exporter.rewrite.measure import measure
from exporter.rewrite.pooled_rotation import pooled_rotation
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


def apply(
    model: VideoClassifier, skip: Collection[str] = (), clips: int = 1
) -> tuple[VideoClassifier, tuple[Fired, ...]]:
    """Rewrite a copy of a model, and measure what each rewrite saves.

    Args:
        model: As `rewrite` takes it.
        skip: As above.
        clips: As above.

    Returns:
        The copy, in evaluation mode, and the rewrites that fired, in order.

    Raises:
        ValueError: if a name is unknown.
    """
    fired, cost = [], measure(model)

    def note(name: str, places: int, rewritten: VideoClassifier) -> None:
        nonlocal cost
        before, cost = cost, measure(rewritten)
        fired.append(Fired(name, places, *(before - cost)))

    return rewrite(model, skip, clips, note), tuple(fired)


@torch.no_grad()
def rewrite(
    model: VideoClassifier,
    skip: Collection[str] = (),
    clips: int = 1,
    note: Callable[[str, int, VideoClassifier], None] | None = None,
) -> VideoClassifier:
    """Rewrite a copy of a model.

    Args:
        model: The model, in whole precision; it is left as it is.
        skip: Names of rewrites to leave out.
        clips: Clips of a run, as far as that is known.
        note: Called with each rewrite that fired, at how many places, and what the model is then.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: if a name is unknown.
    """
    for name in skip:
        if name not in REWRITES:
            closest = nearest(name, list(REWRITES))
            hint = f"; the nearest is {closest!r}" if closest else ""
            raise ValueError(f"unknown rewrite {name!r}: there are {', '.join(REWRITES)}{hint}")
    model = copy.deepcopy(model).eval()
    for name, change in REWRITES.items():
        of_a_run = {"clips": clips} if change in {cut_attention, cut_feed_forward} else {}
        places = 0 if name in skip else change(model, **of_a_run)
        if places and note:
            note(name, places, model)
    return model
