"""Checkpoints to models: what the file tells is inferred, the rest comes from `config`.

Our own files are safetensors with the configuration in their metadata. The published
FastTimeSformer saves bare state dicts, which do not tell the size of a clip, nor always the heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from model.config import SEMANTICS, ConfigError, FastTimeSformerConfig, Preprocessing, check_choice
from model.fast_timesformer import FastTimeSformer
from model.weights_file import METADATA_KEY, CheckpointError, WeightsFile, read_weights

FAMILIES: tuple[str, ...] = ("fast_timesformer",)

_CONFIG_NAMES = tuple(field.name for field in fields(FastTimeSformerConfig))
_SIZES = ("frames", "channels", "height", "width", "patch_size")  # what inference reckons with
_DESCRIBED = ("preprocessing", "labels")  # what a config may hold beside constructor arguments
_NOT_OF_THE_FILE = ("frames_first", "heads", "drop_path", "attn_dropout", "proj_dropout")


@dataclass(frozen=True)
class _Told:
    """A configuration value the file tells, and where it says so."""

    value: Any
    where: str


def load_checkpoint(
    path: str | Path,
    family: str | None = None,
    config: Mapping[str, Any] | None = None,
    semantics: str | None = None,
) -> FastTimeSformer:
    """Load a trained model, in evaluation mode and float32.

    Args:
        path: A `.pth`, `.pt` or `.safetensors` file.
        family: Whose checkpoint it is; told by its keys unless given.
        config: Arguments of that family's constructor which the file does not tell; beside them
            `preprocessing` (`{"mean": [...], "std": [...]}`) and `labels`.
        semantics: `upstream` (default) or `paper` for a checkpoint of the published package.

    Returns:
        A model that takes `(b, f, c, h, w)`, whatever layout its family uses, and gives
        `(b, classes)`; its `preprocessing` and `labels` are set.

    Raises:
        CheckpointError: if the file cannot be read, is of another family, tells other values than
            `config`, or leaves something untold. A file that would have to run code is refused.
    """
    path = Path(path)
    weights = read_weights(path)
    given = dict(config or {})
    try:
        _check_family(path, family, weights)
        if semantics is not None:
            check_choice("semantics", semantics, SEMANTICS)
            given["semantics"] = semantics
        _check_config(given)
        if weights.description:
            told = _read_description(weights)
        else:
            given.setdefault("semantics", "upstream")
            told = _infer(path, weights, given)
        values = _merge(path, given, told)
        model = FastTimeSformer.from_config(FastTimeSformerConfig(**values))
        _describe(model, given, weights.description)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    _load_state(path, model, weights.state)
    return model.eval()


def save_checkpoint(model: FastTimeSformer, path: str | Path) -> None:
    """Write weights, configuration, preprocessing and labels as one safetensors file.

    The file appears whole or not at all.

    Raises:
        ConfigError: if the model's preprocessing or labels do not fit its channels or classes.
    """
    _check_described(model)
    path = Path(path)
    description = {
        "version": 1,
        "family": "fast_timesformer",
        "config": asdict(model.config),
        "preprocessing": asdict(model.preprocessing),
        "labels": model.labels,
    }
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(save(state, metadata={METADATA_KEY: json.dumps(description)}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_family(path: Path, family: str | None, weights: WeightsFile) -> None:
    if family is not None:
        check_choice("checkpoint family", family, FAMILIES)
        return
    known = weights.description.get("family", "fast_timesformer") in FAMILIES
    if not known or not any(".attn_s.fn." in name for name in weights.state):
        raise CheckpointError(
            f"{path} is of no known family: got keys {', '.join(sorted(weights.state)[:4])}, ...; "
            f"expected those of {', '.join(FAMILIES)}, as blocks.0.attn_s.fn.to_qkv.weight"
        )


def _check_config(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        check_choice("config entry", name, (*_CONFIG_NAMES, *_DESCRIBED))
        if name in _SIZES and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} must be a whole number of at least 1: got {value!r}")


def _read_description(weights: WeightsFile) -> dict[str, _Told]:
    stored = weights.description.get("config", {})
    _check_config(stored)
    return {name: _Told(value, "its metadata") for name, value in stored.items()}


def _infer(path: Path, weights: WeightsFile, given: Mapping[str, Any]) -> dict[str, _Told]:
    """Read the configuration off the names and shapes of a published state dict."""
    state = weights.state
    told = _infer_blocks(path, state)
    for key, name, axis in (("cls_token", "dim", -1), ("to_out.fn.weight", "num_classes", 0)):
        if key in state:
            told[name] = _Told(state[key].shape[axis], _shape(key, state[key]))
    rotary, positions = "frame_rot_emb.inv_freqs", "pos_emb.weight"
    if rotary in state:
        told["rotary_emb"] = _Told(True, rotary)
        told.setdefault("dim_head", _Told(2 * len(state[rotary]), _shape(rotary, state[rotary])))
    elif positions in state:
        told["rotary_emb"] = _Told(False, positions)
    if "project_in.weight" in state:
        told |= _infer_patches(path, state["project_in.weight"], given)
    if positions in state and {"height", "width"} <= given.keys() and "patch_size" in told:
        told |= _infer_frames(path, state[positions], given, told["patch_size"].value)
    return told


def _infer_blocks(path: Path, state: Mapping[str, Tensor]) -> dict[str, _Told]:
    """Depth, mechanism, scheme, and the channels of a head where a mechanism has such weights."""
    numbers = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    if numbers != {str(number) for number in range(len(numbers))}:
        raise CheckpointError(f"{path}: blocks are not numbered from 0 without gaps")
    told = {
        "depth": _Told(len(numbers), "its block numbers"),
        "attn_mechanism": _Told("regular", "having neither Wq nor projection_matrix"),
        "attn_type": _Told("joint", "having no attn_t"),
    }
    for key, tensor in state.items():
        for ending, mechanism in (
            (".fn.Wq.weight", "fastformer"),
            (".fn.projection_matrix", "performer"),
        ):
            if key.endswith(ending):
                told["attn_mechanism"] = _Told(mechanism, key)
                told["dim_head"] = _Told(tensor.shape[-1], _shape(key, tensor))
        if ".attn_t." in key:
            told["attn_type"] = _Told("divided", key)
    return told


def _infer_patches(path: Path, weight: Tensor, given: Mapping[str, Any]) -> dict[str, _Told]:
    """Channels c and patch size p, of which the patch embedding tells the product c p p.

    Without either given, c is 3 or 1: no number is both 3 p p and p p.
    """
    where, product = _shape("project_in.weight", weight), weight.shape[-1]
    candidates = [3, 1]
    if "channels" in given:
        candidates = [given["channels"]]
    elif "patch_size" in given:
        candidates = [product // given["patch_size"] ** 2]
    for channels in candidates:
        patch = math.isqrt(product // max(channels, 1))
        if channels * patch**2 == product:
            return {"channels": _Told(channels, where), "patch_size": _Told(patch, where)}
    raise CheckpointError(
        f"{path}: {where} is not channels x patch_size x patch_size for channels "
        f"{' or '.join(map(str, candidates))}; give the channels and patch_size it has"
    )


def _infer_frames(
    path: Path, positions: Tensor, given: Mapping[str, Any], patch: int
) -> dict[str, _Told]:
    """Frames, from one learned position for each patch and one for the class token."""
    size = f"{given['height']} x {given['width']}"
    per_frame = (given["height"] // patch) * (given["width"] // patch)
    where = _shape("pos_emb.weight", positions)
    if not per_frame or (len(positions) - 1) % per_frame:
        raise CheckpointError(
            f"{path}: {where} holds no whole number of frames of {size} with patches of {patch}; "
            "give the height and width it was trained with"
        )
    return {"frames": _Told((len(positions) - 1) // per_frame, f"{where} at {size}")}


def _merge(path: Path, given: Mapping[str, Any], told: Mapping[str, _Told]) -> dict[str, Any]:
    """What the file tells, completed by the config; a contradiction names both."""
    values = {name: entry.value for name, entry in told.items()}
    for name, value in given.items():
        if name in _DESCRIBED:
            continue
        entry = told.get(name)
        if entry is not None and name not in _NOT_OF_THE_FILE and entry.value != value:
            raise CheckpointError(
                f"{path} contradicts the arguments: {name} is {entry.value!r} by {entry.where}, "
                f"but {value!r} was given"
            )
        values[name] = value
    values["frames_first"] = True
    needed = {"frames", "channels", "height", "width", "num_classes", "dim_head"}
    missing = sorted(needed - values.keys())
    if missing:
        raise CheckpointError(
            f"{path} does not tell {', '.join(missing)}; give what it was trained with "
            "(config entries; on the command line --frames, --res, --dim-head)"
        )
    return values


def _describe(
    model: FastTimeSformer, given: Mapping[str, Any], description: Mapping[str, Any]
) -> None:
    described = {**description, **{name: given[name] for name in _DESCRIBED if name in given}}
    if described.get("preprocessing"):
        entry = described["preprocessing"]
        if (
            not isinstance(entry, Mapping)
            or set(entry) != {"mean", "std"}
            or not all(isinstance(values, (list, tuple)) for values in entry.values())
        ):
            raise ConfigError(f"preprocessing: got {entry!r}, expected mean and std per channel")
        model.preprocessing = Preprocessing(tuple(entry["mean"]), tuple(entry["std"]))
    if described.get("labels"):
        if not isinstance(described["labels"], (list, tuple)):
            raise ConfigError(f"labels: got {described['labels']!r}, expected a list of names")
        model.labels = tuple(map(str, described["labels"]))
    _check_described(model)


def _check_described(model: FastTimeSformer) -> None:
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


def _load_state(path: Path, model: FastTimeSformer, state: Mapping[str, Tensor]) -> None:
    wanted = model.state_dict()
    for what, names in (
        ("lacks", wanted.keys() - state.keys()),
        ("has unknown", state.keys() - wanted.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(f"{path} {what} weights: {shown}{more}")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has the wrong shape: got {tuple(state[name].shape)}, expected "
                f"{tuple(tensor.shape)} by the configuration"
            )
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in state.items()})


def _shape(key: str, tensor: Tensor) -> str:
    return f"{key} of shape {tuple(tensor.shape)}"
