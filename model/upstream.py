"""The published FastTimeSformer package (0.2.2) bug for bug, apart from the clean code.

A checkpoint that was trained with that package is valid only with the function of that package. The
function differs from the papers, and from the default semantics here, in these points:

- Tokens are flattened frame by frame, but read patch by patch (`upstream_token_order`). So a "time"
  group is f consecutive patches of the raster.
- fastformer: the global key is summed over the channels instead of over the tokens.
- performer: the random features are not used. It is linear attention without a kernel, and its
  denominator changes sign.
- joint: it has neither residual connections nor a rotary embedding.
- time rotary: it has half-split angles on interleaved pairs (`FrameRotary(half_split=True)`).
- `heads` is ignored: the number of heads is `dim // dim_head`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

from model.attention import Attention, FastAttention, PerformerAttention, RegularAttention
from model.block import Block
from model.precision import as_type_of, at_least_float32
from model.rotary import RotaryTables, Rotation


def upstream_token_order(x: Tensor, frames: int) -> Tensor:
    """Lay the tokens `(b, f h w, d)` out in the order that the package reads them in.

    It reads the raster order `(f h w)` as `(h w) f`. After that the common code applies.
    """
    return rearrange(x, "b (s f) d -> b (f s) d", f=frames)


def raster_order(x: Tensor, frames: int) -> Tensor:
    """Undo `upstream_token_order`: `(b, f h w, d)` in the raster order of the clip."""
    return rearrange(x, "b (f s) d -> b (s f) d", f=frames)


class UpstreamFastAttention(FastAttention):
    """Fastformer with the global key summed over the channels: one number for each token."""

    def find_global_key(self, q: Tensor, k: Tensor) -> Tensor:
        """`(..., n, c), (..., n, c) -> (..., n, c)`: a number for each token and head."""
        global_query = self.pool(self.weigh(q, self.per_head(self.Wq)), q)  # ... 1 c
        beta = self.weigh(k, global_query * self.per_head(self.Wk))  # ... h n
        by_head = self.head_mask.to(beta.dtype)  # h c
        interaction = self.dot(at_least_float32(k), global_query * by_head)  # ... n h
        return (beta.transpose(-1, -2) * interaction) @ by_head


class UpstreamPerformerAttention(PerformerAttention):
    """`q (k^T v) / (q . sum_n k)`: FAVOR+ without its random features."""

    @property
    def qk_factor(self) -> float:
        """One: a factor would cancel between numerator and denominator."""
        return 1.0

    def attend(self, x: Tensor, rotation: Rotation | None) -> Tensor:  # noqa: D102
        q, k, v = self.project_heads(x, rotation)
        precision = v
        q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
        numerator = q @ (k.transpose(-1, -2) @ v)  # ... h n e
        denominator = q @ k.sum(-2).unsqueeze(-1)  # ... h n 1; a sum that cancels
        return self.to_out(self.merge_heads(as_type_of(precision, numerator / denominator)))


class UpstreamJointBlock(Block):
    """Joint attention and feed-forward one after the other: no residuals, no rotation."""

    def forward(  # noqa: D102
        self, cls: Tensor, x: Tensor, rotary: RotaryTables | None
    ) -> tuple[Tensor, Tensor]:
        tokens = torch.cat((cls, x), dim=1)  # b 1+n d
        attended = self.attend(self.steps[0], [tokens], rotary=None)[0]
        tokens = as_type_of(tokens, attended)  # here no sum with the tokens casts it back
        tokens = as_type_of(tokens, self.drop_path(self.mlp(tokens)))
        return tokens[:, :1], tokens[:, 1:]


UPSTREAM_MECHANISMS: Mapping[str, type[Attention]] = {
    "regular": RegularAttention,
    "performer": UpstreamPerformerAttention,
    "fastformer": UpstreamFastAttention,
}
