"""`Family`, the interface between `load_checkpoint` and each published family of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.classifier import VideoClassifier
from model.config import ConfigError
from model.preprocessing import Preprocessing
from model.sampling import Sampling
from model.weights.file import WeightsFile
from model.words import listed


@dataclass(frozen=True)
class Told:
    """A configuration value that the file contains, and the place in the file, for messages.

    A `firm` value cannot be overridden, even where the family lets the user choose. A `guess` gives
    way to what the file tells elsewhere.
    """

    value: Any
    where: str
    firm: bool = False
    guess: bool = False


@dataclass(frozen=True)
class Family:
    """One family of checkpoints.

    All functions and sets use the configuration names of the family's model.

    Args:
        name: The name of the family on the command line and in Python.
        model: The class of the family's model.
        example: A key that every checkpoint of the family has, for messages.
        anchor: A regular expression for one key of the model, below whatever wraps it.
        members: A regular expression for all its keys; other keys are left aside or refused.
        variant_of: The name of the family whose anchor its files have too.
        translate: Renames the arguments of the family's constructor to the names of the model's
            configuration.
        infer: Returns the values that the weights and their sidecars contain, given the config of
            the user; raises `ConfigError`.
        describe: Returns the `preprocessing`, `labels` and `notes` that the sidecars contain, given
            the config of the user and the configuration; raises `ConfigError`. Also `loader`, a
            name and its `Preprocessing`, where the data loader depends on the file.
        adapt: Renames the weights of a state dict, and resizes them where the configuration has
            other sizes; also returns notes about the changes.
        check: Raises `ConfigError` if the keys below the model's path tell another function.
        prepare: Renames the weights of a related family to the names of this one, before all else.
        head: The path of the classifier, if a file may have another one or none.
        free: Entries for which the config of the user overrides the file.
        needed: Entries that the model requires.
        preprocessing: The preprocessing of the family's data loader, if its files never contain
            any.
        rules: The sampling of the family's data loader: what a text like `dense:32@30` leaves open
            is taken from it.
    """

    name: str
    model: type[VideoClassifier]
    example: str
    anchor: str
    members: str
    translate: Callable[[Mapping[str, Any]], dict[str, Any]]
    infer: Callable[[WeightsFile, Mapping[str, Any]], dict[str, Told]]
    adapt: Callable[[Mapping[str, Tensor], Any], tuple[dict[str, Tensor], tuple[str, ...]]]
    free: frozenset[str]
    needed: frozenset[str]
    head: str | None = None
    variant_of: str = ""
    check: Callable[[Collection[str]], None] = lambda _keys: None
    prepare: Callable[[WeightsFile], WeightsFile] = lambda weights: weights
    preprocessing: Preprocessing | None = None
    rules: Sampling = Sampling("dense")  # noqa: RUF009  # frozen
    describe: Callable[[WeightsFile, Mapping[str, Any], Any], dict[str, Any]] = (
        lambda _weights, _given, _config: {}
    )


def shape_of(key: str, tensor: Tensor) -> str:
    """Describe a tensor by its key and its shape, for messages."""
    return f"{key} of shape {tuple(tensor.shape)}"


def list_weights(what: str, names: Collection[str]) -> str:
    """Say what is wrong with some weights, and name the first of them."""
    return f"{what} weights: {listed(sorted(names), 3)}"


def rename(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename the entries that `names` maps, and keep the others.

    Raises:
        ConfigError: if two entries get the same name and have different values.
    """
    renamed: dict[str, Any] = {}
    for name, value in given.items():
        own = names.get(name, name)
        if renamed.setdefault(own, value) != value:
            raise ConfigError(f"{own} is given twice: as {renamed[own]!r} and as {value!r}")
    return renamed


def keep(state: Mapping[str, Tensor], _config: object) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the state dict unchanged, without notes."""
    return dict(state), ()


def is_transposed(qkv: Tensor | None) -> bool:
    """Whether a weight of query, key and value is `(in, out)`, as PaddlePaddle stores it."""
    return qkv is not None and qkv.ndim == 2 and qkv.shape[1] == 3 * qkv.shape[0]


def square_side(positions: Tensor | None) -> int | None:
    """Return the side of the square that learned positions `(1, 1 + side**2, d)` fill.

    The first one is that of the class token. None if they fill no square.
    """
    if positions is None or positions.ndim != 3:
        return None
    side = math.isqrt(max(positions.shape[1] - 1, 0))
    return side if side and side**2 == positions.shape[1] - 1 else None


def count_blocks(name: str, state: Mapping[str, Tensor]) -> Told:
    """Infer the depth N from the keys `name.0.` to `name.N-1.`."""
    prefix = f"{name}."
    numbers = {
        key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)
    }
    if numbers != {str(number) for number in range(len(numbers))}:
        got = listed(sorted(sorted(numbers), key=len))
        raise ConfigError(f"{name} are not numbered from 0 without gaps: got {got}")
    return Told(len(numbers), "its block numbers")


def count_classes(key: str, state: Mapping[str, Tensor]) -> Told:
    """Infer the number of classes from the classifier; 0 without one."""
    weight = state.get(key)
    if weight is None or weight.ndim != 2:
        return Told(0, f"the absence of a classifier {key}")
    return Told(weight.shape[0], shape_of(key, weight))


def infer_patches(key: str, weight: Tensor, given: Mapping[str, Any]) -> dict[str, Told]:
    """Infer channels c and patch size p from the input width c x p x p of the patch embedding.

    If the user gives neither, c is 3 or 1. The result is unique: no integer equals both 3 x p x p
    and q x q for integers p and q.
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
        f"{where}: its input width is not channels x patch_size x patch_size for channels "
        f"{' or '.join(map(str, candidates))}; give the channels and patch_size of the model"
    )


def infer_frames(positions: Tensor, given: Mapping[str, Any], patch: int) -> dict[str, Told]:
    """Infer the frames from the learned positions: one for each patch, one for the class token."""
    size = f"{given['height']} x {given['width']}"
    per_frame = (given["height"] // patch) * (given["width"] // patch)
    where = shape_of("pos_emb.weight", positions)
    if not per_frame or (len(positions) - 1) % per_frame:
        raise ConfigError(
            f"{where} holds no whole number of frames of {size} with patches of {patch}; "
            "give the height and width of its training"
        )
    return {"frames": Told((len(positions) - 1) // per_frame, f"{where} at {size}")}
