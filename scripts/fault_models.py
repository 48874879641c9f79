"""The small exports that faults are planted in."""

from __future__ import annotations

from typing import Any

from exporter.files.manifest import ENGINE_GRAPH, GRAPH, OPENVINO_GRAPH
from exporter.spec import BatchProfile

SMALL: dict[str, Any] = {
    "depth": 2,
    "dim": 32,
    "frames": 3,
    "res": (32, 48),
    "num_classes": 5,
    "runtimes": ("onnxruntime",),
    "engine": "none",
    "bench_seconds": 0.0,
}
FAST = {"dim_head": 16}
FREE = {"dynamic_batch": BatchProfile(1, 4, 8), **FAST}
VIT = {"heads": 2, "model": "facebookresearch"}
KEPT = {"keep_fp32": (".*mlp.*",), **VIT}
MODELS: dict[str, dict[str, Any]] = {
    **{
        f"{attn}-{precision}": {"attn": attn, "precision": precision, **FAST}
        for attn in ("fastformer", "regular", "performer")
        for precision in ("fp32", "fp16", "bf16", "int8")
    },
    "space-bf16": {"attn": "fastformer", "scheme": "space", "precision": "bf16", **FAST},
    # Wide enough that products are rounded to 8 bits: see `int8_products.FORMS`.
    "wide-int8": {"attn": "regular", "precision": "int8", "dim": 128, "dim_head": 64},
    "axial-int8": {"attn": "regular", "scheme": "axial", "precision": "int8", **FAST},
    "cut-fp16": {"attn": "performer", "scheme": "local-global", "precision": "fp16", **FAST},
    "joint-fp32": {"attn": "regular", "scheme": "joint", "precision": "fp32", **FAST},
    "facebookresearch-bf16": {"precision": "bf16", **VIT},
    "timesformer_pytorch-int8": {"model": "timesformer_pytorch", "precision": "int8", **FAST},
    "free-fp32": {"attn": "regular", "precision": "fp32", **FREE},
    "free-bf16": {"attn": "regular", "precision": "bf16", **FREE},
    "embed-fp32": {"precision": "fp32", "embed_preprocess": True, **FAST},
    "embed-bf16": {"precision": "bf16", "embed_preprocess": True, **FAST},
    "kept-bf16": {"precision": "bf16", **KEPT},
    "kept-fp16": {"precision": "fp16", **KEPT},
    "huggingface-fp16": {"precision": "fp16", **VIT, "model": "huggingface"},
    "frozen_in_time-bf16": {"precision": "bf16", **VIT, "model": "frozen_in_time"},
    "performer-joint-bf16": {"attn": "performer", "scheme": "joint", "precision": "bf16", **FAST},
    "local-global-bf16": {"attn": "regular", "scheme": "local-global", "precision": "bf16", **FAST},
    "tensorrt-fp16": {"attn": "regular", "precision": "fp16", "runtimes": ("tensorrt",), **FAST},
    "tensorrt-int8": {"attn": "regular", "precision": "int8", "runtimes": ("tensorrt",), **FAST},
    "openvino-bf16": {"attn": "regular", "precision": "bf16", "runtimes": ("openvino",), **FAST},
}


def graph_of(name: str) -> str:
    """Name the graph of an export that faults are planted in."""
    return {"tensorrt": ENGINE_GRAPH, "openvino": OPENVINO_GRAPH}.get(name.split("-")[0], GRAPH)
