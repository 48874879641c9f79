"""TimeSformer of Hugging Face transformers: read its config.json and rename its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import ConfigError, ViTConfig, image_sides
from model.families.base import Family, Told, count_classes
from model.families.facebookresearch import KINETICS, resize_positions, translate_names
from model.families.huggingface_config import (
    check_weights,
    infer_entries,
    read_entries,
    read_labels,
    read_task,
)
from model.families.huggingface_directory import CONFIG
from model.families.huggingface_preprocessing import assumed_preprocessing, read_processor
from model.timesformer_vit import TimeSformerViT
from model.weights.file import WeightsFile

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


def translate(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the entries of `TimesformerConfig`: `image_size`, `hidden_size`, ..."""
    return translate_names(given, _ARGUMENTS)


def prepare(weights: WeightsFile) -> WeightsFile:
    """Refuse LoRA weights that are not merged: the file does not tell their scale."""
    lora = next((name for name in weights.state if ".lora_" in name), None)
    if lora is not None:
        raise ConfigError(
            f"holds LoRA weights beside the layers that they change, as {lora}; save "
            "merge_and_unload() of the PEFT model, or give its adapter directory"
        )
    return weights


def infer(weights: WeightsFile, given: Mapping[str, Any]) -> dict[str, Told]:
    """Infer the configuration from config.json, and check it against the weights.

    Without config.json the names and shapes tell it, except the number of heads.
    """
    state = weights.state
    if CONFIG in weights.sidecars:
        told = _read_config(weights, given)
    else:
        told = {}
        for name, entry in infer_entries(state).items():
            for ours, value in translate({name: entry.value}).items():
                told[ours] = Told(value, entry.where)
    told["attn"] = Told("regular", "its family")
    told["num_classes"] = count_classes("classifier.weight", state)
    return told


def _read_config(weights: WeightsFile, given: Mapping[str, Any]) -> dict[str, Told]:
    try:
        entries = read_entries(weights.sidecars[CONFIG])
        check_weights(entries, weights.state)
        ours = translate(entries)
    except ConfigError as error:
        raise ConfigError(f"{CONFIG}: {error}") from error
    theirs = {our: name for name, our in _ARGUMENTS.items()}
    theirs |= {"height": "image_size", "width": "image_size", "scheme": "attention_type"}
    told = {
        name: Told(value, f"{theirs.get(name, name)} of {CONFIG}") for name, value in ours.items()
    }
    return told | _infer_resolution(weights, given, entries["patch_size"])


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
    if "preprocessing" not in given:
        described["preprocessing"], notes = (
            processor.preprocessing(config) if processor else assumed_preprocessing(config.channels)
        )
    if CONFIG not in weights.sidecars:
        assumed = f"hidden_act {config.hidden_act} and layer_norm_eps {config.norm_eps}"
        return {
            **described,
            "notes": (f"no {CONFIG}: {assumed}, the defaults unless given", *notes),
        }
    if "labels" not in given and config.num_classes:
        described["labels"] = read_labels(weights.sidecars[CONFIG], config.num_classes)
    if "task" not in given and (task := read_task(weights.sidecars[CONFIG], config.num_classes)):
        described["task"] = task
    sides = image_sides(read_entries(weights.sidecars[CONFIG])["image_size"])
    if processor and processor.output == (config.height, config.width) != sides:
        notes += (
            f"runs at the {config.height} x {config.width} of {processor.name}, not at the "
            f"{sides[0]} x {sides[1]} of {CONFIG}",
        )
    return {**described, "notes": notes}


def adapt(
    state: Mapping[str, Tensor], config: ViTConfig
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename the weights, and resize the learned positions if the frames have another size."""
    ours = {_our_name(name): tensor for name, tensor in state.items()}
    ours, notes = resize_positions(ours, config)
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
    anchor=r"encoder\.layer\.\d+\.attention\.attention\.qkv\.weight",
    members=r"(embeddings\..+|layernorm\.\w+|encoder\.layer\..+)",
    head="classifier",
    prepare=prepare,
    translate=translate,
    infer=infer,
    adapt=adapt,
    free=frozenset({"height", "width", "drop_path", "attn_dropout", "proj_dropout"}),
    needed=frozenset({"frames", "channels", "height", "width", "num_classes", "dim", "heads"}),
    describe=describe,
    rules=KINETICS,  # the published models are those of facebookresearch
)
