"""Additive attention rotates the pooled query and key instead of those of every token."""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.rewrite.places import become, places
from exporter.rewrite.rules.frame_weights import FrameWeights
from model.attention import FastAttention
from model.classifier import VideoClassifier
from model.precision import as_type_of, at_least_float32
from model.rotary import Rotation, swap_pairs


class PooledRotation(FastAttention):
    """Additive attention on `[C q, S q]`, whose swap comes after the sums over the tokens."""

    swap: Tensor

    def turn(self, x: Tensor, q: Tensor, k: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """`[C q, S q]` and the same of the keys: each `(..., n, c) -> (..., n, 2c)`."""
        # The sine belongs to the channel that is written; before the swap it is the other's.
        sin = swap_pairs(rotation.sin.movedim(-1, 0)).movedim(0, -1)
        tables = torch.stack((rotation.cos, sin), dim=-2)  # n 2 c
        q, k = ((one.unsqueeze(-2) * tables).flatten(-2) for one in (q, k))
        return q, k

    def dot(self, x: Tensor, rows: Tensor) -> Tensor:
        """Product of tokens with rows: `(..., n, 2c), (..., h, c) -> (..., n, h)`."""
        return super().dot(x, torch.cat((rows, self._swap(rows)), dim=-1))

    def pool(self, weights: Tensor, x: Tensor) -> Tensor:
        """Weighted sum, rotated: `(..., h, n), (..., n, 2c) -> (..., 1, c)`."""
        pooled = (weights @ at_least_float32(x)).unflatten(-1, (2, -1))  # ... h 2 c
        pooled = (pooled * self.head_mask.to(pooled.dtype).unsqueeze(-2)).sum(-3)  # ... 2 c
        return pooled[..., :1, :] + self._swap(pooled[..., 1:, :])

    def _swap(self, x: Tensor) -> Tensor:
        """Swap the channels of each pair; a product, since runtimes are slow at strides."""
        return x @ as_type_of(x, self.swap)


def pooled_rotation(model: VideoClassifier) -> int:
    """Let additive attention rotate what it has pooled.

    With the cosines C, the sines S and the swap P of the channels of each pair, a rotation is
    `R q = C q + P (S q)`. All that is made of rotated tokens is linear in them:

        sum_i a_i R_i q_i = sum_i a_i C_i q_i + P sum_i a_i S_i q_i,
                w . R_i q_i = [w, P w] . [C_i q_i, S_i q_i],

    so P is applied to one vector of a group instead of all its tokens, for which query and key were
    projected twice.

    It fires on additive attention with rotary positions.

    Returns:
        At how many places it fired.
    """
    fired = 0
    for place in places(model):
        attention = place.attention
        done = isinstance(attention, FrameWeights | PooledRotation)
        if isinstance(attention, FastAttention) and place.rotated and not done:
            become(attention, PooledRotation)
            identity = torch.eye(attention.heads * attention.dim_head).to(attention.head_mask)
            attention.register_buffer("swap", swap_pairs(identity), persistent=False)
            fired += 1
    return fired
