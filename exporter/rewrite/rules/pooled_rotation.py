"""Additive attention rotates the pooled query and key instead of those of every token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from exporter.rewrite.places import Place, become, places
from exporter.rewrite.rule import Refusal, Rewrite
from exporter.rewrite.rules.frame_weights import FrameWeights
from model.attention import FastAttention
from model.classifier import VideoClassifier
from model.precision import as_type_of, at_least_float32
from model.rotary import Rotation, swap_pairs


class PooledRotation(FastAttention):
    """Additive attention on `[C q, S q]`; channels are swapped after the sums over the tokens."""

    swap: Tensor

    def rotate_tokens(
        self, x: Tensor, q: Tensor, k: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor]:
        """`[C q, S q]` and the same of the keys: each `(..., n, c) -> (..., n, 2c)`."""
        # A sine belongs to the channel that is written. Before the swap that is the other channel.
        sin = swap_pairs(rotation.sin.movedim(-1, 0)).movedim(0, -1)
        tables = torch.stack((rotation.cos, sin), dim=-2)  # n 2 c
        q = (q.unsqueeze(-2) * tables).flatten(-2)
        k = (k.unsqueeze(-2) * tables).flatten(-2)
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
        """Swap the channels of each pair, as a product: runtimes are slow at strides."""
        return x @ as_type_of(x, self.swap)


class PooledRotationRewrite(Rewrite[Place]):
    """Let additive attention rotate what it has pooled.

    With the cosines C, the sines S and the swap P of the channels of each pair, a rotation is
    `R q = C q + P (S q)`. All results of rotated tokens are linear in them:

        sum_i a_i R_i q_i = sum_i a_i C_i q_i + P sum_i a_i S_i q_i
                w . R_i q_i = [w, P w] . [C_i q_i, S_i q_i]

    So P is applied to one vector of a group. Without the rewrite it is applied to all tokens, and
    query and key are projected twice for that.
    """

    name = "pooled_rotation"
    targets = frozenset({"onnxruntime"})  # TensorRT has fewer kernels with `sum_pools`

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Place]:  # noqa: D102
        return places(model, clips)

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        attention = place.attention
        if not isinstance(attention, FastAttention):
            return Refusal("the mechanism does not pool its queries")
        if place.rotary is None:
            return Refusal("query and key are not rotated")
        if isinstance(attention, FrameWeights):
            return Refusal("the rotation is in the weights of each frame")
        if isinstance(attention, PooledRotation):
            return Refusal("it is applied already")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        attention = become(place.attention, PooledRotation)
        identity = torch.eye(attention.heads * attention.dim_head).to(attention.head_mask)
        attention.register_buffer("swap", swap_pairs(identity), persistent=False)


pooled_rotation = PooledRotationRewrite()
