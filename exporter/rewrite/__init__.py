"""Rewrites: the same function, laid out for the runtimes. The table of the rules is here.

Each rule is in a file of its own in `rules/`. `choose` decides which rules an export takes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from exporter.rewrite.measure import Known, measure
from exporter.rewrite.rule import Rewrite
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
from exporter.rewrite.rules.join_feed_forward import join_feed_forward
from exporter.rewrite.rules.join_groups import join_groups
from exporter.rewrite.rules.one_product import one_product
from exporter.rewrite.rules.pooled_rotation import pooled_rotation
from exporter.rewrite.rules.sum_pools import sum_pools
from model.classifier import VideoClassifier
from model.config import nearest

# In the order in which they are applied.
REWRITES: Mapping[str, Rewrite[Any]] = {
    rule.name: rule
    for rule in (
        class_token,  # first: other rules ask whether an attention has one query only
        fold_norm,  # before the rules that replace the projections
        fold_fc,
        frame_weights,  # before the rules that rotate tokens
        heads_first,
        one_product,
        few_features,
        pooled_rotation,
        sum_pools,
        fold_global_key,
        bias_apart,
        cut_attention,
        cut_feed_forward,
        join_feed_forward,
        join_groups,  # after the rules that replace the attention
        fold_pixels,
    )
}


@dataclass(frozen=True)
class Fired:
    """A rewrite that was applied: at how many places, and what that saves for each clip."""

    name: str
    places: int
    operations_saved: int
    flops_saved: int
    bytes_saved: int


@dataclass(frozen=True)
class Refused:
    """A rewrite that was not applied at a number of places, and why."""

    name: str
    places: int
    reason: str


class Rewritten(NamedTuple):
    """A rewritten model, and what each rewrite did or did not do to it."""

    model: VideoClassifier
    fired: tuple[Fired, ...]
    refused: tuple[Refused, ...]


@torch.no_grad()
def rewrite(model: VideoClassifier, skip: Collection[str] = (), clips: int = 1) -> VideoClassifier:
    """Rewrite a copy of a model.

    Args:
        model: The model, in whole precision; it is not changed.
        skip: Names of rewrites to leave out.
        clips: Clips of a run.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: if a name is unknown.
    """
    model = copy.deepcopy(model).eval()
    for rule in _rules_without(skip):
        rule(model, clips)
    return model


@torch.no_grad()
def rewrite_measured(
    model: VideoClassifier, skip: Collection[str] = (), clips: int = 1
) -> Rewritten:
    """Rewrite a copy of a model as `rewrite` does, and measure what each rewrite saves.

    Returns:
        The copy, the rewrites that were applied, in order, and the refusals by reason.
    """
    model = copy.deepcopy(model).eval()
    fired: list[Fired] = []
    refused: list[Refused] = []
    rules = list(_rules_without(skip))
    known: dict[Any, Known] = {}
    cost = measure(model, known) if rules else None
    for rule in rules:
        refusals = list(rule.visit(model, clips))
        reasons = Counter(refusal.reason for refusal in refusals if refusal)
        refused += [Refused(rule.name, places, reason) for reason, places in reasons.items()]
        if cost and (places := len(refusals) - reasons.total()):
            before, cost = cost, measure(model, known)
            fired.append(Fired(rule.name, places, *(before - cost)))
    return Rewritten(model, tuple(fired), tuple(refused))


def _rules_without(skip: Collection[str]) -> Iterator[Rewrite[Any]]:
    for name in skip:
        if name not in REWRITES:
            closest = nearest(name, list(REWRITES))
            hint = f"; the nearest is {closest!r}" if closest else ""
            raise ValueError(f"unknown rewrite {name!r}: there are {', '.join(REWRITES)}{hint}")
    return (rule for name, rule in REWRITES.items() if name not in skip)
