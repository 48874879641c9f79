"""Find the model inside a checkpoint by its keys, whatever wraps it.

A file may hold several: the plain weights, and their average over the training steps (EMA).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model.config import ConfigError, check_choice
from model.families.base import Family
from model.weights.file import WeightsFile
from model.words import listed

KINDS = ("plain", "ema")
_OPTIMIZER = re.compile(
    r"(?i)(^|[._])(optim|optimizer|scheduler|scaler|grad|exp_avg|momentum_buffer)(s|_states?)?"
    r"([._]|$)"
)
_EMA = re.compile(
    r"(?i)(?<![a-z])(ema|swa|avg|averaged?|teacher|shadow|polyak)(?![a-z])|(model|net)ema(?![a-z])"
)


@dataclass(frozen=True)
class Candidate:
    """A model inside a file: the path before its keys, its family, or its own configuration.

    `family` is `None` for a state dict of ours, whose configuration is `signature`. The `kind` says
    whether the weights are an average over the training steps (`ema`), or `plain`.
    """

    prefix: str
    kind: str
    family: Family | None
    signature: Any = None

    @property
    def description(self) -> str:
        """The path, the family and the kind, for messages."""
        return f"{self.label} ({self.family.name if self.family else 'ours'}, {self.kind})"

    @property
    def label(self) -> str:
        """The path as a user names it."""
        return self.prefix.rstrip(".") or "(top)"


def find_models(
    weights: WeightsFile, families: Mapping[str, Family], name: str | None
) -> list[Candidate]:
    """List the models of a file; `name` is the only family to look for.

    Raises:
        ConfigError: if there is none, or if the keys of two families are mixed.
    """
    if name is not None:
        check_choice("checkpoint family", name, families)
    sought = families if name is None else {name: families[name]}
    found = {
        prefix: Candidate(prefix, _kind(prefix, weights), None, signature)
        for path, signature in weights.signatures.items()
        for prefix in [f"{path}." if path else ""]
        if any(key.startswith(prefix) for key in weights.state)
    }
    for family in sought.values():
        pattern = re.compile(rf"(|.*\.)(?:{family.anchor})")
        for key in weights.state:
            match = pattern.fullmatch(key)
            if match is None or _OPTIMIZER.search(match[1]):
                continue
            each = Candidate(match[1], _kind(match[1], weights), family)
            other = found.setdefault(match[1], each).family
            if other is not None and other.variant_of == family.name:
                continue
            if other not in (None, family):
                raise ConfigError(
                    f"keys of {other.name} and {family.name} are mixed: {_keys(weights)}"
                )
    if not found:
        raise ConfigError(_explain_nothing(weights, families, name))
    return list(found.values())


def choose(
    found: Sequence[Candidate], weights: WeightsFile, which: str | None
) -> tuple[Candidate, tuple[str, ...]]:
    """Choose one of the models; also return the notes that tell the choice.

    Args:
        found: The models of a file.
        weights: The file.
        which: `plain`, `ema` or the path of a model; `None` for the plain weights, or for what
            mmengine or Lightning itself loads.

    Raises:
        ConfigError: if there is no such model, or several are left.
    """
    labels = ", ".join(each.description for each in found)
    if which is None:
        default = KINDS[_is_swapped(weights)]
        kept = [each for each in found if each.kind == default] or list(found)
    else:
        kept = [each for each in found if each.kind == which] if which in KINDS else []
        kept = kept or [each for each in found if each.label == which]
        if not kept:
            raise ConfigError(
                f"has no weights {which!r}: got {labels}; omit --weights, or give one of them"
            )
    kept = _without_copies(kept, weights)
    if len(kept) > 1:
        raise ConfigError(
            f"holds several models: {labels}; choose one with --weights, as --weights "
            f"{kept[0].label}"
        )
    if len(found) == 1:
        average = (f"weights of {kept[0].label}: an average over the training steps (EMA)",)
        return kept[0], average if kept[0].kind == KINDS[1] else ()
    others = ", ".join(each.label for each in found if each is not kept[0])
    told = "as asked" if which else "by default"
    return kept[0], (
        f"weights of {kept[0].label} ({kept[0].kind}) taken, {told}; the file also holds {others}: "
        "choose with --weights",
    )


def _kind(prefix: str, weights: WeightsFile) -> str:
    if _is_swapped(weights):
        return KINDS[prefix.startswith("state_dict.")]
    return KINDS[bool(_EMA.search(prefix))]


def _is_swapped(weights: WeightsFile) -> bool:
    """Whether the file holds the average as `state_dict`, as mmengine and Lightning save it."""
    beside = ["averaging_state."]  # of Lightning's WeightAveraging
    if "meta.mmengine_version" in weights.settings:
        beside.append("ema_state_dict.")
    return any(key.startswith(tuple(beside)) for key in weights.state)


def _without_copies(kept: list[Candidate], weights: WeightsFile) -> list[Candidate]:
    """Leave out the models whose weights equal those of an earlier one."""
    states: list[dict[str, torch.Tensor]] = []
    distinct: list[Candidate] = []
    for each in kept:
        state = {
            key.removeprefix(each.prefix): tensor
            for key, tensor in weights.state.items()
            if key.startswith(each.prefix)
        }
        if not any(_equal(state, other) for other in states):
            distinct.append(each)
        states.append(state)
    return distinct


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _explain_nothing(weights: WeightsFile, families: Mapping[str, Family], name: str | None) -> str:
    if name is not None:
        return f"is not of family {name}: {_keys(weights)}; expected {families[name].example}"
    if any(".lora_" in key for key in weights.state):
        return "holds an adapter without its model: give its directory, with adapter_config.json"
    if any("_flat_param" in key for key in weights.state):
        return "holds the part of one process of FSDP: save the model with FULL_STATE_DICT"
    examples = ", ".join(f"{family.example} of {family.name}" for family in families.values())
    return f"belongs to no known family: {_keys(weights)}; expected, for example, {examples}"


def _keys(weights: WeightsFile) -> str:
    return f"got keys {listed(sorted(weights.state))}"
