"""Video transformers of the TimeSformer family, for training and for export.

Each name is imported at its first use, so that a program without torch can import `model.config`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.attention import FastAttention, PerformerAttention, RegularAttention
    from model.checkpoint import load_checkpoint, save_checkpoint
    from model.config import ConfigError, FastTimeSformerConfig
    from model.fast_timesformer import FastTimeSformer
    from model.preprocessing import Preprocessing
    from model.space_time_transformer import SpaceTimeTransformer
    from model.timesformer import TimeSformer
    from model.timesformer_vit import TimeSformerViT
    from model.weights.file import CheckpointError

    FastformerAttention = FastAttention

_HOMES = {
    "CheckpointError": "weights.file",
    "ConfigError": "config",
    "FastAttention": "attention",
    "FastTimeSformer": "fast_timesformer",
    "FastTimeSformerConfig": "config",
    "PerformerAttention": "attention",
    "Preprocessing": "preprocessing",
    "RegularAttention": "attention",
    "SpaceTimeTransformer": "space_time_transformer",
    "TimeSformer": "timesformer",
    "TimeSformerViT": "timesformer_vit",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}
# Name in the README of the published package -> name of its class.
_ALIASES = {"FastformerAttention": "FastAttention"}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "FastAttention",
    "FastTimeSformer",
    "FastTimeSformerConfig",
    "FastformerAttention",
    "PerformerAttention",
    "Preprocessing",
    "RegularAttention",
    "SpaceTimeTransformer",
    "TimeSformer",
    "TimeSformerViT",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    name = _ALIASES.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
