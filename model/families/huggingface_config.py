"""Read the `config.json` of a Hugging Face directory, and check it against the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import ACTIVATION_NAMES, ConfigError, check_choice, image_sides
from model.families.base import Told, count_blocks, shape_of, square_side
from model.families.facebookresearch import ATTENTION_TYPES
from model.families.huggingface_directory import CONFIG
from model.task import PROBLEM_TYPES, TaskName, check_task

# Entries of config.json that change the function or its training, with their default values.
_DEFAULTS: Mapping[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "num_frames": 8,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "attention_type": "divided_space_time",
    "drop_path_rate": 0.0,
}
_PLACES = "embeddings.position_embeddings"
_GIVE_LABELS = "give the labels with --config '{\"labels\": [...]}'"
# Entry of config.json -> name of a weight and the axis whose size must equal the entry.
_SHOWN = {
    "hidden_size": ("embeddings.cls_token", -1),
    "num_frames": ("embeddings.time_embeddings", 1),
    "num_channels": ("embeddings.patch_embeddings.projection.weight", 1),
    "patch_size": ("embeddings.patch_embeddings.projection.weight", -1),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
}


def read_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked entries of config.json; missing entries get their default."""
    entries = {
        name: default if config.get(name) is None else config[name]
        for name, default in _DEFAULTS.items()
    }
    patch = entries["patch_size"]
    if isinstance(patch, list) and len(patch) == 2 and patch[0] == patch[1]:
        entries["patch_size"] = patch[0]
    for name, default in _DEFAULTS.items():
        value = entries[name]
        pair = name == "image_size" and isinstance(value, list) and len(value) == 2
        sides = value if pair else [value]
        if type(default) is int and not all(type(side) is int and side > 0 for side in sides):
            raise ConfigError(f"{name} must be a whole number of at least 1: got {value!r}")
    check_choice("attention_type", entries["attention_type"], ATTENTION_TYPES)
    check_choice("hidden_act", entries["hidden_act"], ACTIVATION_NAMES)
    if not isinstance(entries["qkv_bias"], bool):
        raise ConfigError(f"qkv_bias must be true or false: got {entries['qkv_bias']!r}")
    return entries


def check_weights(entries: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise `ConfigError` if the weights contradict an entry of config.json."""
    shown = _infer_sizes(state)
    kind = entries["attention_type"]
    times = "embeddings.time_embeddings"
    temporal = next((key for key in state if ".temporal_attention." in key), None)
    if (kind == "divided_space_time") != (temporal is not None):
        shown["attention_type"] = (
            Told("divided_space_time", temporal)
            if temporal
            else Told("joint_space_time or space_only", "the absence of temporal_attention")
        )
    elif (kind == "space_only") == (times in state):
        other = "space_only" if kind == "joint_space_time" else "joint_space_time"
        shown["attention_type"] = Told(other, _presence(times, state))
    for name, entry in shown.items():
        if entries[name] != entry.value:
            raise ConfigError(
                f"contradicts the weights: {name} is {entries[name]!r}, but {entry.value!r} by "
                f"{entry.where}"
            )
    _check_places(entries, state)


def _presence(key: str, state: Mapping[str, Tensor]) -> str:
    """Say whether the weights have a key, for messages."""
    return f"the {'presence' if key in state else 'absence'} of {key}"


def _check_places(entries: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise `ConfigError` if the number of learned positions contradicts `image_size`."""
    places = state.get(_PLACES)
    if places is None or places.ndim != 3:
        return
    size, patch = entries["image_size"], entries["patch_size"]
    height, width = image_sides(size)
    wanted = (height // patch) * (width // patch) + 1
    if places.shape[1] != wanted:
        raise ConfigError(
            f"contradicts the weights: image_size {size} in patches of {patch} has {wanted} "
            f"positions, but the weights have {shape_of(_PLACES, places)}"
        )


def infer_entries(state: Mapping[str, Tensor]) -> dict[str, Told]:
    """Infer the entries that names and shapes tell, for weights without a config.json."""
    told = _infer_sizes(state)
    temporal = next((key for key in state if ".temporal_attention." in key), None)
    times = "embeddings.time_embeddings"
    kind = "joint_space_time" if times in state else "space_only"
    told["attention_type"] = (
        Told("divided_space_time", temporal) if temporal else Told(kind, _presence(times, state))
    )
    side, patch = square_side(state.get(_PLACES)), told.get("patch_size")
    if side is not None and patch is not None:
        told["image_size"] = Told(side * patch.value, shape_of(_PLACES, state[_PLACES]))
    return told


def _infer_sizes(state: Mapping[str, Tensor]) -> dict[str, Told]:
    """Infer the entries of which a weight has the size, the depth, and whether there are biases."""
    told = {
        name: Told(state[key].shape[axis], shape_of(key, state[key]))
        for name, (key, axis) in _SHOWN.items()
        if key in state and state[key].ndim > max(axis, 0)
    }
    told["num_hidden_layers"] = count_blocks("encoder.layer", state)
    bias = "encoder.layer.0.attention.attention.qkv.bias"
    told["qkv_bias"] = Told(bias in state, _presence(bias, state))
    return told


def read_task(config: Mapping[str, Any], classes: int) -> TaskName | None:
    """Return the task that `problem_type` tells; None where it is empty, as the library has it."""
    kind = config.get("problem_type")
    if kind is None or not classes:
        return None
    try:
        check_choice(f"problem_type of {CONFIG}", kind, PROBLEM_TYPES)
    except ConfigError as error:
        remedy = 'say what the logits mean with --config \'{"task": "single-label"}\''
        raise ConfigError(f"{error}; {remedy}") from None
    return check_task(PROBLEM_TYPES[kind], classes)


def read_labels(config: Mapping[str, Any], classes: int) -> list[str]:
    """Return the labels of id2label in order, or the library's default names without id2label."""
    names, numbers = config.get("id2label"), config.get("label2id")
    if names is None and not isinstance(numbers, Mapping):
        return [f"LABEL_{number}" for number in range(classes)]
    given: Any = numbers if names is None else names
    try:
        pairs = ((n, name) for name, n in given.items()) if names is None else given.items()
        named = [(int(number), str(name)) for number, name in pairs]
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{CONFIG}: id2label must hold names by number: got {str(given)[:80]}; {_GIVE_LABELS}"
        ) from error
    if len(named) != classes:
        raise ConfigError(
            f"{CONFIG}: id2label has {len(named)} labels, expected {classes}: one for each row of "
            f"classifier.weight; {_GIVE_LABELS}"
        )
    by_number = dict(named)
    if sorted(by_number) != list(range(classes)):
        raise ConfigError(
            f"{CONFIG}: id2label does not number its labels 0 to {classes - 1}; {_GIVE_LABELS}"
        )
    return [by_number[number] for number in range(classes)]
