"""Video transformers of the TimeSformer family, written to be trained and to be exported."""

from model.attention import FastAttention, PerformerAttention, RegularAttention
from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import ConfigError, FastTimeSformerConfig, Preprocessing
from model.fast_timesformer import FastTimeSformer
from model.weights_file import CheckpointError

FastformerAttention = FastAttention  # the published class name; its README says FastAttention

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
    "load_checkpoint",
    "save_checkpoint",
]
