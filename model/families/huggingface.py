"""TimeSformer of Hugging Face transformers: read its config.json and rename its weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from model.config import ACTIVATION_NAMES, ConfigError, ViTConfig, check_choice, image_sides
from model.families.base import Family, Told, count_blocks, shape_of
from model.families.facebookresearch import (
    ATTENTION_TYPES,
    resize_positions,
    translate_names,
)
from model.families.huggingface_directory import CONFIG, MODEL_TYPE
from model.families.huggingface_preprocessing import assumed_preprocessing, read_processor
from model.timesformer_vit import TimeSformerViT
from model.weights_file import WeightsFile

_PREFIX = "timesformer."
# Module names of a layer in transformers -> our names.
# In every scheme, `attn_s` is our name of the last attention step.
_LAYER = {
    "layernorm_before": "attn_s.norm",
    "attention.attention.qkv": "attn_s.fn.to_qkv",
    "attention.output.dense": "attn_s.fn.to_out",
    "temporal_layernorm": "attn_t.norm",
    "temporal_attention.attention.qkv": "attn_t.fn.to_qkv",
    "temporal_attention.output.dense": "attn_t.fn.to_out",
    "temporal_dense": "fc_t",
    "layernorm_after": "mlp.norm",
    "intermediate.dense": "mlp.fn.fc1",
    "output.dense": "mlp.fn.fc2",
}
_REST = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.time_embeddings": "time_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "classifier.weight": "head.weight",
    "classifier.bias": "head.bias",
}
_ARGUMENTS = {
    "num_frames": "frames",
    "num_channels": "channels",
    "num_labels": "num_classes",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_dim",
    "layer_norm_eps": "norm_eps",
    "drop_path_rate": "drop_path",
    "attention_probs_dropout_prob": "attn_dropout",
    "hidden_dropout_prob": "proj_dropout",
}
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
# Entry of config.json -> name of a weight and the axis whose size must equal the entry.
_SHOWN = {
    "hidden_size": ("embeddings.cls_token", -1),
    "num_frames": ("embeddings.time_embeddings", 1),
    "num_channels": ("embeddings.patch_embeddings.projection.weight", 1),
    "patch_size": ("embeddings.patch_embeddings.projection.weight", -1),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
}


def recognises(keys: Collection[str]) -> bool:
    """Return whether the keys are those of an encoder whose attention has one `qkv` projection."""
    return any("encoder.layer." in key and ".attention.attention.qkv." in key for key in keys)


def translate(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the entries of `TimesformerConfig`: `image_size`, `hidden_size`, ..."""
    return translate_names(given, _ARGUMENTS)


def infer(weights: WeightsFile, given: Mapping[str, Any]) -> dict[str, Told]:
    """Infer the configuration from config.json, and check it against the weights."""
    if CONFIG not in weights.sidecars:
        raise ConfigError(
            f"holds Hugging Face weights without their {CONFIG}; give the directory that holds both"
        )
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.state.items()}
    if not recognises(state.keys()):
        raise ConfigError(
            f"holds no layers of {MODEL_TYPE}: got keys {', '.join(sorted(state)[:4])}"
        )
    classifier = state.get("classifier.weight")
    if classifier is None or classifier.ndim != 2:
        raise ConfigError(
            "has no classification head (classifier.weight and classifier.bias): it is a bare "
            "TimesformerModel, expected a TimesformerForVideoClassification"
        )
    try:
        entries = _read_entries(weights.sidecars[CONFIG])
        _check_weights(entries, state)
        ours = translate(entries)
    except ConfigError as error:
        raise ConfigError(f"{CONFIG}: {error}") from error
    theirs = {our: name for name, our in _ARGUMENTS.items()}
    theirs |= {"height": "image_size", "width": "image_size", "scheme": "attention_type"}
    told = {
        name: Told(value, f"{theirs.get(name, name)} of {CONFIG}") for name, value in ours.items()
    }
    told["attn"] = Told("regular", "its family")
    told["num_classes"] = Told(classifier.shape[0], shape_of("classifier.weight", classifier))
    return told | _infer_resolution(weights, given, entries["patch_size"])


def _read_entries(config: Mapping[str, Any]) -> dict[str, Any]:
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


def _check_weights(entries: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise `ConfigError` if the weights contradict an entry of config.json."""
    shown = {
        name: Told(state[key].shape[axis], shape_of(key, state[key]))
        for name, (key, axis) in _SHOWN.items()
        if key in state and state[key].ndim > max(axis, 0)
    }
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
    shown["num_hidden_layers"] = count_blocks("encoder.layer", state)
    bias = "encoder.layer.0.attention.attention.qkv.bias"
    shown["qkv_bias"] = Told(bias in state, _presence(bias, state))
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
    places = state.get("embeddings.position_embeddings")
    if places is None or places.ndim != 3:
        return
    size, patch = entries["image_size"], entries["patch_size"]
    height, width = image_sides(size)
    wanted = (height // patch) * (width // patch) + 1
    if places.shape[1] != wanted:
        raise ConfigError(
            f"contradicts the weights: image_size {size} in patches of {patch} has {wanted} "
            f"positions, but the weights have {shape_of('embeddings.position_embeddings', places)}"
        )


def _infer_resolution(
    weights: WeightsFile, given: Mapping[str, Any], patch: int
) -> dict[str, Told]:
    """Infer height and width from the output size of the processor, if that size is fixed."""
    processor = read_processor(weights.sidecars)
    if processor is None or processor.output is None or {"height", "width"} <= given.keys():
        return {}
    height, width = processor.output
    if height % patch or width % patch:
        raise ConfigError(
            f"{processor.name} gives frames of {height} x {width}, but height and width must be "
            f"multiples of patch_size {patch}; give the height and width to run at"
        )
    where = f"the frames of {processor.name}"
    return {"height": Told(height, where), "width": Told(width, where)}


def describe(weights: WeightsFile, given: Mapping[str, Any], config: ViTConfig) -> dict[str, Any]:
    """Return labels and preprocessing unless the user gives them, and notes on all differences."""
    described: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    processor = read_processor(weights.sidecars)
    if "labels" not in given:
        described["labels"] = _read_labels(weights.sidecars[CONFIG], config.num_classes)
    if "preprocessing" not in given:
        described["preprocessing"], notes = (
            processor.preprocessing(config) if processor else assumed_preprocessing(config.channels)
        )
    sides = image_sides(_read_entries(weights.sidecars[CONFIG])["image_size"])
    if processor and processor.output == (config.height, config.width) != sides:
        notes += (
            f"runs at the {config.height} x {config.width} of {processor.name}, not at the "
            f"{sides[0]} x {sides[1]} of {CONFIG}",
        )
    return {**described, "notes": notes}


def _read_labels(config: Mapping[str, Any], classes: int) -> list[str]:
    """Return the labels of id2label in order, or the library's default names without id2label."""
    names = config.get("id2label")
    if names is None:
        return [f"LABEL_{number}" for number in range(classes)]
    try:
        by_number = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise ConfigError(
            f"{CONFIG}: id2label must hold names by number: got {str(names)[:80]}"
        ) from error
    if len(names) != classes:
        raise ConfigError(
            f"{CONFIG}: id2label has {len(names)} labels, expected {classes}: one for each row of "
            "classifier.weight"
        )
    if sorted(by_number) != list(range(classes)):
        raise ConfigError(f"{CONFIG}: id2label does not number its labels 0 to {classes - 1}")
    return [by_number[number] for number in range(classes)]


def adapt(
    state: Mapping[str, Tensor], config: ViTConfig
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename the weights, and resize the learned positions if the frames have another size."""
    bare = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    ours, notes = resize_positions(
        {_our_name(name): tensor for name, tensor in bare.items()}, config
    )
    if config.scheme == "space":
        notes += (
            "space_only: the tokens are averaged over the frames before the last norm, as the "
            "original does; Hugging Face instead gives separate logits for every frame",
        )
    return ours, notes


def _our_name(name: str) -> str:
    if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name):
        layer, module, kind = match.groups()
        return f"blocks.{layer}.{_LAYER.get(module, module)}.{kind}"
    return _REST.get(name, name)


HUGGINGFACE = Family(
    name="huggingface",
    model=TimeSformerViT,
    example="timesformer.encoder.layer.0.attention.attention.qkv.weight",
    recognises=recognises,
    translate=translate,
    infer=infer,
    adapt=adapt,
    free=frozenset({"height", "width", "drop_path", "attn_dropout", "proj_dropout"}),
    needed=frozenset({"frames", "channels", "height", "width", "num_classes", "dim", "heads"}),
    describe=describe,
)
