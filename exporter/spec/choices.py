"""The values that the options of an export may take."""

from __future__ import annotations

from model.config import FAMILY_NAMES, PRESETS
from model.outputs import OUTPUTS

MODEL_NAMES = (*FAMILY_NAMES, *PRESETS)
ENGINES: tuple[str, ...] = ("auto", "rtx", "tensorrt", "none")
LOWER_PRECISIONS: tuple[str, ...] = ("fp16", "bf16", "int8")
PRECISIONS: tuple[str, ...] = ("fp32", *LOWER_PRECISIONS)
TARGETS: tuple[str, ...] = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
REWRITE_NAMES: tuple[str, ...] = (  # of `exporter.rewrite`, which imports torch
    *("class_token", "fold_norm", "fold_fc", "frame_weights", "heads_first", "one_product"),
    *("few_features", "pooled_rotation", "sum_pools", "fold_global_key", "bias_apart"),
    *("cut_attention", "cut_feed_forward", "join_feed_forward", "join_groups"),
    "fold_pixels",
)
OUTPUT_WORDS: tuple[str, ...] = tuple(name.replace("_", "-") for name in OUTPUTS)
RUNTIMES: tuple[str, ...] = ("onnxruntime", "openvino", "tensorrt")
DEFAULT_FAMILY = "fast_timesformer"
OPSETS = range(16, 24)  # TensorRT 8 of JetPack 5 reads up to 17
DEFAULT_OPSET = 20  # the first with Gelu; every TensorRT from 10 on parses it
BF16_OPSET = 22  # the first whose Conv takes bfloat16
# The builder's own choice of targets hides what a dtype needs of the GPU.
_AMPERE_ON = ("sm80", "sm86", "sm89", "sm120", "sm121")
EXPLICIT_TARGETS = {"bf16": _AMPERE_ON, "int8": _AMPERE_ON}
