"""Load checkpoints into models and save models as checkpoints.

Values that the file contains are inferred; `config` supplies the others. Our own files are
safetensors with the configuration in their metadata, so they need no `config`. Each file of
`model/families/` reads the checkpoints of one published family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from model.classifier import VideoClassifier
from model.config import SEMANTICS, ConfigError, Preprocessing, check_choice
from model.families.base import Family, Told
from model.families.facebookresearch import FACEBOOKRESEARCH
from model.families.fast_timesformer import FAST_TIMESFORMER
from model.families.huggingface import HUGGINGFACE
from model.families.huggingface_directory import read_directory
from model.families.timesformer_pytorch import TIMESFORMER_PYTORCH
from model.weights_file import (
    METADATA_KEY,
    CheckpointError,
    WeightsFile,
    is_directory,
    read_weights,
)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (FAST_TIMESFORMER, FACEBOOKRESEARCH, HUGGINGFACE, TIMESFORMER_PYTORCH)
}
MODELS: Mapping[str, type[VideoClassifier]] = {
    family.model.family: family.model for family in FAMILIES.values()
}

_SIZES = ("frames", "channels", "height", "width", "patch_size")  # inference computes with these
_PREPROCESSING = ("mean", "std", "short_side")
_DESCRIBED = ("preprocessing", "labels")  # config entries, but not constructor arguments


def load_checkpoint(
    path: str | Path,
    family: str | None = None,
    config: Mapping[str, Any] | None = None,
    semantics: str | None = None,
) -> VideoClassifier:
    """Load a trained model, in evaluation mode and float32.

    Args:
        path: A `.pth`, `.pyth`, `.pt` or `.safetensors` file, or a Hugging Face directory.
        family: The family of the checkpoint. By default, its keys decide.
        config: Constructor arguments of the family that the file does not contain. It may also hold
            `preprocessing` (`{"mean": [...], "std": [...]}`, optional `short_side`) and `labels`.
        semantics: `upstream` (default) or `paper`, for a checkpoint of the published
            FastTimeSformer. No other family has this choice.

    Returns:
        A model that maps `(b, f, c, h, w)` to `(b, classes)`, whatever layout its family uses. Its
        `preprocessing`, `labels` and `notes` are set.

    Raises:
        CheckpointError: if the file cannot be read, belongs to another family, contradicts
            `config`, or leaves a value unknown. Also if reading the file would run code from it.
    """
    path = Path(path)
    weights = read_directory(path) if is_directory(path) else read_weights(path)
    given = dict(config or {})
    try:
        if semantics is not None:
            check_choice("semantics", semantics, SEMANTICS)
            given["semantics"] = semantics
        if weights.description:
            model, state = _build_own(weights, family, given)
            described = weights.description
        else:
            reader = _find_family(family, weights)
            model, state = _build_published(reader, weights, given)
            described = reader.describe(weights, given, model.config)
            model.notes += described.get("notes", ())
        _describe(model, given, described)
        _load_state(model, state)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model.eval()


def save_checkpoint(model: VideoClassifier, path: str | Path) -> None:
    """Write weights, configuration, preprocessing and labels as one safetensors file.

    The write is atomic: if it fails, no partial file remains and an old file stays unchanged.

    Raises:
        ConfigError: if the model's preprocessing or labels do not fit its channels or classes.
    """
    _check_described(model)
    path = Path(path)
    description = {
        "version": 1,
        "family": model.family,
        "config": asdict(model.config),
        "preprocessing": {name: getattr(model.preprocessing, name) for name in _PREPROCESSING},
        "labels": model.labels,
    }
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(save(state, metadata={METADATA_KEY: json.dumps(description)}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _find_family(name: str | None, weights: WeightsFile) -> Family:
    if name is None:
        family = _recognise(weights.state)
    else:
        check_choice("checkpoint family", name, FAMILIES)
        family = FAMILIES[name]
    if weights.sidecars and family is not HUGGINGFACE:
        raise ConfigError(f"is a directory of {HUGGINGFACE.name}, but the family is {family.name}")
    return family


def _recognise(state: Mapping[str, Tensor]) -> Family:
    found = [family for family in FAMILIES.values() if family.recognises(state.keys())]
    if len(found) == 1:
        return found[0]
    keys = f"got keys {', '.join(sorted(state)[:4])}, ..."
    if found:
        names = " and ".join(family.name for family in found)
        raise ConfigError(f"keys of {names} are mixed: {keys}")
    examples = ", ".join(f"{family.example} of {family.name}" for family in FAMILIES.values())
    raise ConfigError(f"belongs to no known family: {keys}; expected, for example, {examples}")


def _build_own(
    weights: WeightsFile, family: str | None, given: Mapping[str, Any]
) -> tuple[VideoClassifier, Mapping[str, Tensor]]:
    """Build the model that the metadata of our own file describes."""
    kind = weights.description.get("family", FAST_TIMESFORMER.model.family)
    check_choice("model family in its metadata", kind, MODELS)
    reader = next(entry for entry in FAMILIES.values() if entry.model.family == kind)
    if family is not None:
        check_choice("checkpoint family", family, FAMILIES)
        if FAMILIES[family].model is not reader.model:
            raise ConfigError(f"the metadata names family {kind!r}, but {family!r} was given")
        reader = FAMILIES[family]
    stored = weights.description.get("config", {})
    _check_config(stored, reader)
    told = {name: Told(value, "its metadata") for name, value in stored.items()}
    given = reader.translate(given)
    _check_config(given, reader)
    free = reader.free - {"frames", "height", "width", "heads"}
    values = _merge(given, told, free, reader.needed)
    return reader.model.from_config(reader.model.config_class(**values)), weights.state


def _build_published(
    family: Family, weights: WeightsFile, given: Mapping[str, Any]
) -> tuple[VideoClassifier, Mapping[str, Tensor]]:
    """Build the model that the names and shapes of a published state dict describe."""
    given = family.translate(given)
    _check_config(given, family)
    if "semantics" in _config_names(family):
        given.setdefault("semantics", "upstream")
    values = _merge(given, family.infer(weights, given), family.free, family.needed)
    config = family.model.config_class(**values)
    state, notes = family.adapt(weights.state, config)
    model = family.model.from_config(config)
    model.notes = notes
    if family.preprocessing and "preprocessing" not in given:
        model.preprocessing = family.preprocessing
        model.notes += (f"preprocessing of the {family.name} data loader assumed",)
    return model, state


def _config_names(family: Family) -> tuple[str, ...]:
    return tuple(field.name for field in fields(family.model.config_class))


def _check_config(given: Mapping[str, Any], family: Family) -> None:
    for name, value in given.items():
        check_choice("config entry", name, _config_names(family) + _DESCRIBED)
        if name in _SIZES and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} must be a whole number of at least 1: got {value!r}")


def _merge(
    given: Mapping[str, Any],
    told: Mapping[str, Told],
    free: frozenset[str],
    needed: frozenset[str],
) -> dict[str, Any]:
    """Merge the values of the file with the config; an error names both values of an entry."""
    values = {name: entry.value for name, entry in told.items()}
    for name, value in given.items():
        if name in _DESCRIBED:
            continue
        entry = told.get(name, Told(None, ""))
        if entry.value not in (None, value) and name not in free:
            raise ConfigError(
                f"contradicts the arguments: {name} is {entry.value!r} by {entry.where}, but "
                f"{value!r} was given"
            )
        values[name] = value
    if "frames_first" in values:
        values["frames_first"] = True
    missing = sorted(needed - values.keys())
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise ConfigError(
            f"does not tell {', '.join(missing)}; give the values of its training: config "
            f"entries, or on the command line {options}, with --res for height and width"
        )
    return values


def _describe(
    model: VideoClassifier, given: Mapping[str, Any], description: Mapping[str, Any]
) -> None:
    described = {**description, **{name: given[name] for name in _DESCRIBED if name in given}}
    if described.get("preprocessing"):
        entry = described["preprocessing"]
        if (
            not isinstance(entry, Mapping)
            or not {"mean", "std"} <= set(entry) <= set(_PREPROCESSING)
            or not all(isinstance(entry[name], (list, tuple)) for name in ("mean", "std"))
        ):
            raise ConfigError(f"preprocessing: got {entry!r}, expected mean and std per channel")
        model.preprocessing = Preprocessing(
            tuple(entry["mean"]), tuple(entry["std"]), entry.get("short_side")
        )
    if described.get("labels"):
        if not isinstance(described["labels"], (list, tuple)):
            raise ConfigError(f"labels: got {described['labels']!r}, expected a list of names")
        model.labels = tuple(map(str, described["labels"]))
    _check_described(model)


def _check_described(model: VideoClassifier) -> None:
    """Raise `ConfigError` unless preprocessing and labels fit the model's channels and classes."""
    config, means = model.config, len(model.preprocessing.mean)
    if means != config.channels:
        raise ConfigError(
            f"preprocessing: got {means} means, expected one for each of {config.channels} channels"
        )
    if model.labels is not None and len(model.labels) != config.num_classes:
        raise ConfigError(
            f"labels: got {len(model.labels)} names, expected {config.num_classes} (one for each "
            "class)"
        )


def _load_state(model: VideoClassifier, state: Mapping[str, Tensor]) -> None:
    wanted = model.state_dict()
    for what, names in (
        ("lacks", wanted.keys() - state.keys()),
        ("has unknown", state.keys() - wanted.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(f"{what} weights: {shown}{more}")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise ConfigError(
                f"{name} has the wrong shape: got {tuple(state[name].shape)}, expected "
                f"{tuple(tensor.shape)} by the configuration"
            )
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in state.items()})
