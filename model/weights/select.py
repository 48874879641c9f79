"""Select the weights of one model from a file: its own, its classifier, and what is left aside."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.config import ConfigError
from model.families.base import Family, list_weights
from model.weights.file import WeightsFile, check_description
from model.weights.find import Candidate
from model.weights.head import Head, find_head
from model.words import listed

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What training puts beside the weights of a model; it is no part of the function.
TRAINING = re.compile(
    r"(?i)loss|criterion|metric|(?<![a-z])acc(?![a-z])|accuracy|auroc|confusion|optim|sched"
    r"|num_batches_tracked|n_averaged|(?<![a-z])(mean|std|aux|auxiliary)(?![a-z])"
)
_MOST_NAMES = 6


def select(
    weights: WeightsFile,
    chosen: Candidate,
    found: Sequence[Candidate],
    head: str | None,
) -> WeightsFile:
    """Return the weights of one model under the names of its family, with notes.

    Args:
        weights: The file.
        chosen: The model.
        found: All models of the file.
        head: The path of the classifier; `None` for no classifier, "" if the keys decide.

    Raises:
        ConfigError: if the classifier is not certain, or a weight is not a finite float.
    """
    scope = _without_others(weights.state, chosen, found)
    prefix, family = chosen.prefix, chosen.family
    classifier = Head({}, [])
    if family is not None:
        family.check([key for key in scope if key.startswith(prefix)])
    if family is not None and family.head:
        classifier = find_head(family, prefix, scope, head)
    aside = {f"{path}.{part}" for path in classifier.others for part in ("weight", "bias")}
    aside |= set(classifier.keys.values())  # under another name below
    used = {
        key.removeprefix(prefix): key
        for key, tensor in scope.items()
        if key.startswith(prefix)
        and key not in aside
        and not _is_aside(key.removeprefix(prefix), tensor, family)
    } | classifier.keys
    state = {name: scope[key] for name, key in used.items()}
    if family is not None:
        _check_names(family, set(state) - classifier.keys.keys())
    _check_numbers(state)
    notes = classifier.notes
    if classifier.keys and not weights.sidecars:  # the library of the directories always has a bias
        notes += _fill_bias(str(family and family.head), state)
    notes += _list_aside([key for key in scope if key not in set(used.values())], prefix)
    described = check_description(chosen.signature) if family is None else {}
    return replace(weights, state=state, description=described, notes=weights.notes + notes)


def _without_others(
    state: Mapping[str, Tensor], chosen: Candidate, found: Iterable[Candidate]
) -> dict[str, Tensor]:
    """Return the tensors outside the parts of the file that belong to another model."""
    parts: set[str] = set()
    for other in found:
        mine, theirs = chosen.prefix.split("."), other.prefix.split(".")
        shared = next(
            (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), len(mine)
        )
        if other is not chosen and theirs[shared:] not in ([], [""]):
            parts.add(".".join(theirs[: shared + 1]) + ".")
    # An empty prefix is a part of every other: only what is not inside the other is its own.
    return {key: t for key, t in state.items() if not key.startswith(tuple(parts))}


def _is_aside(name: str, tensor: Tensor, family: Family | None) -> bool:
    """Whether a tensor below the model's path belongs to its training."""
    if family is not None and re.fullmatch(family.members, name):
        return False
    counts = not tensor.dtype.is_floating_point or tensor.ndim == 0
    return counts or (family is not None and bool(TRAINING.search(name)))


def _fill_bias(head: str, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Give a classifier without a bias one of zeros, which computes the same."""
    if f"{head}.bias" in state:
        return ()
    state[f"{head}.bias"] = state[f"{head}.weight"].new_zeros(len(state[f"{head}.weight"]))
    return ("the classifier has no bias",)


def _check_names(family: Family, names: Collection[str]) -> None:
    """Raise `ConfigError` if a weight is of no module of the family."""
    unknown = [name for name in names if not re.fullmatch(family.members, name)]
    if unknown:
        raise ConfigError(
            f"{list_weights('has unknown', unknown)}, which no {family.name} model has; if its "
            "output does not depend on them, save the checkpoint without them"
        )


def _check_numbers(state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.ndim == 0:
            raise ConfigError(f"{name} has the wrong shape: got (), a single number")
        if tensor.dtype not in _FLOATS:
            raise ConfigError(
                f"{name} is {tensor.dtype}, expected unquantised floating-point weights: save them "
                "before quantisation, or after dequantize() of the library that quantised them"
            )
        if not tensor.numel() and not name.endswith(".scales"):  # narrow heads rotate by none
            raise ConfigError(
                f"{name} has no numbers, as in a part of a sharded checkpoint: give the whole one, "
                "which zero_to_fp32.py of DeepSpeed or FULL_STATE_DICT of FSDP writes"
            )
        if not torch.isfinite(tensor).all():
            raise ConfigError(f"holds NaN or infinite weights in {name}")


def _list_aside(keys: Collection[str], prefix: str) -> tuple[str, ...]:
    """Name what was left aside, in few words: the keys, or their first parts with their number."""
    if not keys:
        return ()
    top = prefix.partition(".")[0] + "."
    names = [key.removeprefix(top) for key in keys]
    if len(names) > _MOST_NAMES:
        counts: dict[str, int] = {}
        for name in names:
            part = name.partition(".")[0]
            counts[part] = counts.get(part, 0) + 1
        names = [f"{part} ({count} tensors)" for part, count in counts.items()]
    return (f"left aside beside the model: {listed(names, _MOST_NAMES)}",)
