"""Tokens to heads and back: the projections that all attention mechanisms share.

Axes: n tokens of a group, d token width, h heads, e channels of a head, c = h x e.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ConfigError, check_size
from model.precision import Rounded, as_type_of, at_least_float32
from model.rotary import Rotation, rotate


class Projection(NamedTuple):
    """Weight `(c, d)` and bias `(c,)` of one linear map."""

    weight: Tensor
    bias: Tensor | None


def project_rotated(
    x: Tensor, projection: Projection, rotation: Rotation | None, scale: float
) -> Tensor:
    """Project, scale and rotate: `(..., n, d) -> (..., n, c)`; the scale goes into the weights.

    They are scaled in float32 at least: a graph of lower precision would round the scale too.
    """
    weight, bias = projection
    if scale != 1.0:
        weight = as_type_of(weight, at_least_float32(weight) * scale)
        bias = None if bias is None else as_type_of(bias, at_least_float32(bias) * scale)
    projected = F.linear(x, weight, bias)
    return projected if rotation is None else rotate(projected, x, rotation, weight, bias)


def softmax_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax over the keys of `q k^T + bias`: `(..., n, e), (..., m, e) -> (..., n, m)`."""
    logits = at_least_float32(q @ k.transpose(-1, -2))
    return as_type_of(q, (logits if bias is None else logits + bias).softmax(-1))


class HeadProjections(Rounded):
    """Tokens to heads and back: the projections, with the names of the published packages.

    Args:
        dim: Token width d.
        dim_head: Channels of a head e.
        heads: Heads h; `dim // dim_head` unless given.
        qkv_bias: Add a bias to query, key and value.
        qk_scale: Scale of the logits; `dim_head ** -0.5` unless given.
        attn_drop: Dropout rate of the attention weights in training.
        proj_drop: Dropout rate of the output in training.

    Raises:
        ConfigError: if a size is not a whole number in its limits, or they do not fit together.
    """

    def __init__(
        self,
        dim: int,
        dim_head: int = 64,
        heads: int | None = None,
        *,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("dim_head", dim_head), ("heads", heads)):
            if size is not None or name != "heads":
                check_size(name, size)
        if heads is None and dim % dim_head:
            raise ConfigError(f"dim must be a multiple of dim_head {dim_head}: got {dim}")
        self.heads = heads or dim // dim_head
        self.dim_head = dim_head
        self.scale = qk_scale or dim_head**-0.5
        inner = self.heads * dim_head
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.to_out = nn.Linear(inner, dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)

    @property
    def qk_factor(self) -> float:
        """The factor of both query and key: their product has the scale of the logits."""
        return math.sqrt(self.scale)

    def project_heads(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key (both scaled and rotated) and value by head, each `(..., h, n, e)`."""
        query, key, value = self.split_weights()
        query_rotation = rotation
        if rotation is not None:
            query_rotation = Rotation(
                self.select_queries(rotation.cos), self.select_queries(rotation.sin)
            )
        q = project_rotated(self.select_queries(x), query, query_rotation, self.qk_factor)
        k = project_rotated(x, key, rotation, self.qk_factor)
        v = F.linear(x, *value)
        return self.split_heads(q), self.split_heads(k), self.split_heads(v)

    def select_queries(self, tokens: Tensor) -> Tensor:
        """The tokens `(..., n, d)` whose outputs are needed: all.

        A hook for the exporter, which lets the last block compute the class token only.
        """
        return tokens

    def split_weights(self) -> tuple[Projection, Projection, Projection]:
        """Weight and bias of query, key and value: views of the published `to_qkv`."""
        weights, bias = self.to_qkv.weight.unflatten(0, (3, -1)), self.to_qkv.bias
        biases = (None, None, None) if bias is None else bias.unflatten(0, (3, -1))
        query, key, value = map(Projection, weights, biases)
        return query, key, value

    def split_heads(self, x: Tensor) -> Tensor:
        """`(..., n, c) -> (..., h, n, e)`."""
        return x.unflatten(-1, (self.heads, self.dim_head)).transpose(-3, -2)

    def merge_heads(self, x: Tensor) -> Tensor:
        """`(..., h, n, e) -> (..., n, c)`."""
        return x.transpose(-3, -2).flatten(-2)
