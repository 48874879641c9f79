"""Limits of what a model or a checkpoint may claim, checked before time and memory are taken."""

from __future__ import annotations

import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `exporter` describes models without torch
    from torch import Tensor

# The largest models of the family have 48 blocks and are 1,664 wide.
MOST = {
    "frames": 1024,
    "channels": 64,
    "height": 4096,
    "width": 4096,
    "num_classes": 1_000_000,
    "patch_size": 1024,
    "dim": 16_384,
    "depth": 1_000,
    "heads": 1_024,
    "dim_head": 16_384,
    "mlp_dim": 65_536,
}
MOST_CLIP = 2**25  # numbers in one clip: TimeSformer-L takes 2**23.8
_SHARED = 8  # tensors of a file may share their bytes, as tied weights do


def clip_fault(*sizes: int) -> str:
    """Say that a clip of frames, channels, height and width is too large, or ""."""
    if math.prod(sizes) <= MOST_CLIP:
        return ""
    got = " x ".join(map(str, sizes))
    return f"frames x channels x height x width must be at most {MOST_CLIP:,}: got {got}"


def claim_fault(config: Any, state: Mapping[str, Tensor]) -> str:  # noqa: ANN401  # of any family
    """Say what a configuration claims that the weights beside it cannot hold, or "".

    Every block has weights of `dim` x `dim`, and the patch embedding and the head have theirs, so
    that a model is never much larger than the file.
    """
    stored = sum(tensor.numel() for tensor in state.values())
    dim, depth = getattr(config, "dim", 1), getattr(config, "depth", 1)
    heads, width = getattr(config, "heads", None) or 1, getattr(config, "dim_head", 1)
    claims = {
        "depth": depth * dim * dim,
        "patch_size": config.patch_size**2 * config.channels * dim,
        "num_classes": config.num_classes * dim,
        "heads": heads * width * dim,
        "mlp_dim": (getattr(config, "mlp_dim", None) or 1) * dim,
    }
    name, least = max(claims.items(), key=lambda claim: claim[1])
    if least <= stored:
        return ""
    return f"{name} asks for {least:,} weights at least, but the file holds {stored:,}"


def tensor_fault(tensors: Mapping[str, Tensor], file_bytes: int) -> str:
    """Say which tensor is not plain numbers in the file, or ""."""
    import torch

    total = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            kind = "quantised" if tensor.is_quantized else kind
            remedy = "dequantize()" if tensor.is_quantized else "to_dense()"
            return f"{name} is a {kind} tensor, expected plain numbers: save its {remedy}"
        if tensor.device.type != "cpu":
            return f"{name} is on the device {tensor.device}, so the file has no numbers of it"
        claimed = tensor.numel() * tensor.element_size()
        total += claimed
        if claimed > file_bytes or total > _SHARED * file_bytes:
            return (
                f"{name} claims {claimed:,} bytes, {total:,} with the tensors before it, but the "
                f"file has {file_bytes:,}"
            )
    return ""


def size_fault(name: str, value: int) -> str:
    """Say that a size is above its limit, or ""."""
    most = MOST.get(name, math.inf)
    return f"{name} must be at most {most:,}: got {value:,}" if value > most else ""


def file_fault(path: Path) -> str:
    """Say that a path is a pipe or a device, which may block or never end, or ""."""
    return "" if stat.S_ISREG(path.stat().st_mode) else "it is a pipe or a device, not a file"
