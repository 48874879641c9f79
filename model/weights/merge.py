"""Merge what a checkpoint tells with what the user gives, and load it into the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from model.classifier import VideoClassifier
from model.config import ConfigError, check_choice
from model.families.base import Family, Told, list_weights

_SIZES = ("frames", "channels", "height", "width", "patch_size")  # inference computes with these
# Config entries, but not constructor arguments.
DESCRIBED = ("preprocessing", "clip", "labels", "task")


def config_names(family: Family) -> tuple[str, ...]:
    """Return the names of the configuration of a family's model."""
    return tuple(field.name for field in fields(family.model.config_class))


def check_config(given: Mapping[str, Any], family: Family) -> None:
    """Raise `ConfigError` if an entry is unknown, or a size is no whole number."""
    for name, value in given.items():
        check_choice("config entry", name, config_names(family) + DESCRIBED)
        if name in _SIZES and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} must be a whole number of at least 1: got {value!r}")


def merge(
    given: Mapping[str, Any],
    told: Mapping[str, Told],
    free: frozenset[str],
    needed: frozenset[str],
) -> dict[str, Any]:
    """Merge the values of the file with the config; an error names both values of an entry."""
    values = {name: entry.value for name, entry in told.items()}
    for name, value in given.items():
        if name in DESCRIBED:
            continue
        entry = told.get(name, Told(None, ""))
        if entry.value not in (None, value) and (entry.firm or name not in free):
            raise ConfigError(
                f"contradicts the arguments: {name} is {entry.value!r} by {entry.where}, but "
                f"{value!r} was given"
            )
        values[name] = value
    if "frames_first" in values:
        values["frames_first"] = True
    missing = sorted(needed - values.keys())
    if missing:
        options = ", ".join(dict.fromkeys(map(_option, missing)))
        raise ConfigError(
            f"does not tell {', '.join(missing)}; give the values of its training: config "
            f"entries, or on the command line {options}"
        )
    return values


def add_settings(
    told: Mapping[str, Told], settings: Mapping[str, Told], given: Mapping[str, Any]
) -> dict[str, Told]:
    """Add what the settings of a file tell to what its weights tell.

    Raises:
        ConfigError: if they differ, and the user did not say which is right.
    """
    merged = dict(told)
    for name, entry in settings.items():
        known = told.get(name)
        if known is None or known.guess:
            merged[name] = entry
        elif known.value not in (0, entry.value) and name not in given:  # 0: it has no classifier
            raise ConfigError(
                f"contradicts itself: {name} is {known.value!r} by {known.where}, but "
                f"{entry.value!r} by {entry.where}; say which is right with {_option(name)}"
            )
    return merged


def _option(name: str) -> str:
    """Return the option of the command line that sets a value: --res sets height and width."""
    return "--res" if name in ("height", "width") else f"--{name.replace('_', '-')}"


def name_sources(
    fault: str, told: Mapping[str, Told], settings: Mapping[str, Told], given: Mapping[str, Any]
) -> str:
    """Say which of the values that a fault names are settings of the file, and where, or ""."""
    return "".join(
        f"; {name} is {entry.value!r} by {entry.where}: say what is right with {_option(name)}"
        for name, entry in settings.items()
        if name not in given and told.get(name) is entry and re.search(rf"\b{name}\b", fault)
    )


def notes_on_told(
    told: Mapping[str, Told], settings: Mapping[str, Told], given: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return a note on each value that no weight tells: it is a setting of the file or a guess."""
    return tuple(
        f"{name} {entry.value} by {entry.where}"
        for name, entry in told.items()
        if name not in given and (entry.guess or entry is settings.get(name))
    )


def load_state(model: VideoClassifier, state: Mapping[str, Tensor]) -> None:
    """Load weights into a model, as float32.

    Raises:
        ConfigError: if a weight is missing, unknown or of another shape.
    """
    wanted = model.state_dict()
    for what, names in (
        ("lacks", wanted.keys() - state.keys()),
        ("has unknown", state.keys() - wanted.keys()),
    ):
        if names:
            raise ConfigError(list_weights(what, names))
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise ConfigError(
                f"{name} has the wrong shape: got {tuple(state[name].shape)}, expected "
                f"{tuple(tensor.shape)} by the configuration"
            )
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in state.items()})
