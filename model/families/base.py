"""What a family of checkpoints tells its reader: the protocol behind `load_checkpoint`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.classifier import VideoClassifier
from model.config import ConfigError, Preprocessing
from model.weights_file import WeightsFile


@dataclass(frozen=True)
class Told:
    """A configuration value the file tells, and where it says so."""

    value: Any
    where: str


@dataclass(frozen=True)
class Family:
    """One family of checkpoints, in the configuration names of its model.

    Args:
        name: What the user calls it.
        model: The class that computes it.
        example: A key that every checkpoint of it has, for messages.
        recognises: Whether the keys of a state dict are its.
        translate: Gives its constructor's arguments the names of the model's configuration.
        infer: What the weights and their sidecars tell, given what the user says; raises
            `ConfigError`.
        describe: `preprocessing`, `labels` and `notes`, as far as the sidecars tell, given what
            the user says and the configuration; raises `ConfigError`.
        adapt: Renames, and where sizes differ resizes, a state dict for a configuration; gives
            notes of what was changed.
        free: Entries in which the user may differ from the file.
        needed: Entries without which no model can be built.
        preprocessing: What its own data loader did, where its files never tell.
    """

    name: str
    model: type[VideoClassifier]
    example: str
    recognises: Callable[[Collection[str]], bool]
    translate: Callable[[Mapping[str, Any]], dict[str, Any]]
    infer: Callable[[WeightsFile, Mapping[str, Any]], dict[str, Told]]
    adapt: Callable[[Mapping[str, Tensor], Any], tuple[dict[str, Tensor], tuple[str, ...]]]
    free: frozenset[str]
    needed: frozenset[str]
    preprocessing: Preprocessing | None = None
    describe: Callable[[WeightsFile, Mapping[str, Any], Any], dict[str, Any]] = (
        lambda _weights, _given, _config: {}
    )


def shape_of(key: str, tensor: Tensor) -> str:
    """Where a value was read, for messages."""
    return f"{key} of shape {tuple(tensor.shape)}"


def rename(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Give some entries other names.

    Raises:
        ConfigError: if two entries mean the same and differ.
    """
    renamed: dict[str, Any] = {}
    for name, value in given.items():
        own = names.get(name, name)
        if renamed.setdefault(own, value) != value:
            raise ConfigError(f"{own} is given twice: as {renamed[own]!r} and as {value!r}")
    return renamed


def keep(state: Mapping[str, Tensor], _config: object) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Adapt nothing."""
    return dict(state), ()


def count_blocks(name: str, state: Mapping[str, Tensor]) -> Told:
    """Depth, from keys `name.0. ... name.N-1.`."""
    prefix = f"{name}."
    numbers = {
        key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)
    }
    if numbers != {str(number) for number in range(len(numbers))}:
        raise ConfigError(f"{name} are not numbered from 0 without gaps")
    return Told(len(numbers), "its block numbers")


def infer_patches(key: str, weight: Tensor, given: Mapping[str, Any]) -> dict[str, Told]:
    """Channels c and patch size p, of which the patch embedding tells the product c p p.

    Without either given, c is 3 or 1: no number is both 3 p p and p p.
    """
    where, product = shape_of(key, weight), weight.shape[-1]
    candidates = [3, 1]
    if "channels" in given:
        candidates = [given["channels"]]
    elif "patch_size" in given:
        candidates = [product // given["patch_size"] ** 2]
    for channels in candidates:
        patch = math.isqrt(product // max(channels, 1))
        if channels * patch**2 == product:
            return {"channels": Told(channels, where), "patch_size": Told(patch, where)}
    raise ConfigError(
        f"{where} is not channels x patch_size x patch_size for channels "
        f"{' or '.join(map(str, candidates))}; give the channels and patch_size it has"
    )


def infer_frames(positions: Tensor, given: Mapping[str, Any], patch: int) -> dict[str, Told]:
    """Frames, from one learned position for each patch and one for the class token."""
    size = f"{given['height']} x {given['width']}"
    per_frame = (given["height"] // patch) * (given["width"] // patch)
    where = shape_of("pos_emb.weight", positions)
    if not per_frame or (len(positions) - 1) % per_frame:
        raise ConfigError(
            f"{where} holds no whole number of frames of {size} with patches of {patch}; "
            "give the height and width it was trained with"
        )
    return {"frames": Told((len(positions) - 1) // per_frame, f"{where} at {size}")}
