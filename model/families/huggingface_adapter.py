"""Merge a LoRA adapter of PEFT into the weights that it changes: `W + s B A`.

Hu et al. 2021, arXiv:2106.09685; rank-stabilised scaling: Kalajdzievski 2023, arXiv:2312.03732.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import ConfigError
from model.weights.file import read_json, read_weights

ADAPTER = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_LORA = re.compile(r"(.+)\.(lora_A|lora_B)(?:\.\w+)?\.(weight|bias)")
MERGE = "save merge_and_unload() of the PEFT model with save_pretrained, and give that directory"
# Entries of adapter_config.json that change the arithmetic beyond plain LoRA.
_OTHERS = (
    "use_dora",
    "use_qalora",
    "arrow_config",
    "use_bdlora",
    "corda_config",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "kasa_config",
    "monteclora_config",
)
# Starts of the training that leave the base model as it is; others, as PiSSA, change it too.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """An adapter directory: its configuration and its weights, by the names of the whole model."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]

    @property
    def base(self) -> str:
        """The path or the hub id of the model that the adapter changes; "" if it is not told."""
        return str(self.config.get("base_model_name_or_path") or "")

    def scale(self, name: str, rank: int) -> float:
        """Return the factor of a module's product: alpha / rank, or alpha / sqrt(rank)."""
        alpha = self._pattern("alpha_pattern", name, self.config.get("lora_alpha", 8))
        wanted = self._pattern("rank_pattern", name, self.config.get("r", rank))
        if not isinstance(alpha, (int, float)) or wanted != rank:
            raise ConfigError(
                f"{ADAPTER}: {name} has rank {rank} by its weights, but rank {wanted} and "
                f"lora_alpha {alpha!r} by the configuration"
            )
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _pattern(self, kind: str, name: str, default: Any) -> Any:  # noqa: ANN401  # parsed
        """Return the entry of the first pattern that matches the end of a module's name."""
        patterns = self.config.get(kind) or {}
        try:
            found = (v for p, v in patterns.items() if re.fullmatch(rf"(.*\.)?({p})", name))
            return next(found, default)
        except (AttributeError, re.error) as error:
            raise ConfigError(
                f"{ADAPTER}: {kind} must hold numbers by regular expressions: got "
                f"{str(patterns)[:80]}"
            ) from error


def read_adapter(path: Path) -> Adapter:
    """Read an adapter directory of PEFT.

    Raises:
        CheckpointError: if a file is missing or damaged.
        ConfigError: if the adapter is no plain LoRA.
    """
    config = read_json(path / ADAPTER)
    kind = config.get("peft_type")
    others = [name for name in _OTHERS if config.get(name)]
    if (start := config.get("init_lora_weights")) not in _STARTS:
        others.append(f"init_lora_weights {start!r}, which changes the base model too,")
    if kind != "LORA" or others:
        what = others[0] if kind == "LORA" else f"peft_type {kind!r}"
        raise ConfigError(f"{ADAPTER}: {what} is not plain LoRA; {MERGE}")
    file = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if file is None:
        raise ConfigError(f"has {ADAPTER} but no {' or '.join(_WEIGHTS)}")
    state = {
        name.removeprefix(_PREFIX): tensor for name, tensor in read_weights(file).state.items()
    }
    return Adapter(config, state)


def merge_adapter(adapter: Adapter, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the base model with the adapter in them.

    Weights that the adapter holds whole, as a new classifier, replace those of the base model.

    Raises:
        ConfigError: if the adapter does not fit the base model.
    """
    merged = dict(state)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.state.items():
        if match := _LORA.fullmatch(name):
            module, side, kind = match.groups()
            parts.setdefault(module, {})[f"{side}.{kind}"] = tensor
        elif ".lora_" in name:
            raise ConfigError(f"holds {name}, which is no plain LoRA; {MERGE}")
        else:
            merged[_find(re.sub(r"\.modules_to_save(\.\w+)?(?=\.)", "", name), state)] = tensor
    for module, sides in parts.items():
        _add(adapter, module, sides, merged)
    return merged


def _add(
    adapter: Adapter, module: str, sides: Mapping[str, Tensor], merged: dict[str, Tensor]
) -> None:
    """Add the product of one module to its weight, and the bias of `lora_bias`."""
    if not {"lora_A.weight", "lora_B.weight"} <= sides.keys():
        raise ConfigError(f"lacks lora_A or lora_B of {module}")
    down, up = sides["lora_A.weight"].float(), sides["lora_B.weight"].float()
    # Of a convolution `up` has one pixel. PEFT ignores `fan_in_fan_out` for both kinds of layers.
    if min(down.ndim, up.ndim) < 2 or not down.numel() or up.flatten(1).shape[1] != len(down):
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise ConfigError(f"lora_A and lora_B of {module} have no product: got shapes {shapes}")
    scale = adapter.scale(module, len(down))
    name = _find(f"{module}.weight", merged)
    weight = merged[name]
    delta = torch.einsum("or,r...->o...", up.flatten(1), down)
    if delta.shape != weight.shape:
        raise ConfigError(
            f"does not fit its base model: {module} changes a weight of shape "
            f"{tuple(delta.shape)}, but the base model has {tuple(weight.shape)}"
        )
    merged[name] = weight.float() + scale * delta
    if "lora_B.bias" in sides:
        bias, added = _find(f"{module}.bias", merged), sides["lora_B.bias"]
        if added.shape != merged[bias].shape:
            raise ConfigError(
                f"does not fit its base model: lora_B.bias of {module} has shape "
                f"{tuple(added.shape)}, but the base model has {tuple(merged[bias].shape)}"
            )
        merged[bias] = merged[bias].float() + scale * added.float()


def _find(name: str, state: Mapping[str, Tensor]) -> str:
    """Return the name of a weight in the base model, which may be bare or have a classifier."""
    bare = name.partition(".")[2]
    for candidate in (name, bare):
        if candidate in state:
            return candidate
    if name.startswith("classifier."):  # a new classifier on a bare model
        return name
    raise ConfigError(f"does not fit its base model, which has no {name}")
