"""The attention mechanisms: how tokens attend. Each maps `(..., n, d)` to `(..., n, d)`.

Axes: n tokens of a group, d token width, h heads, e channels of a head, c = h x e, m random
features. A token attends to its own group only. The leading axes are the batch and the groups.

The code is written for the runtimes. Query, key and value have one projection each, and the
published weight is split instead of the activations. Softmax is over the last axis. The logits of
all heads are one matrix product.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ConfigError
from model.precision import as_type_of, at_least_float32
from model.projections import HeadProjections, softmax_weights
from model.rotary import Rotation, rotate


class Attention(HeadProjections, ABC):
    """The base of the mechanisms: all tokens of a group attend to each other."""

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Attend.

        Args:
            x: Tokens `(..., n, d)` in any precision.
            rotation: Rotary angles of the n tokens, or None.

        Returns:
            Attended tokens `(..., n, d)` in the precision of the weights.
        """
        weight = self.to_out.weight
        if rotation is not None:
            rotation = Rotation(*(as_type_of(weight, table) for table in rotation))
        return self.attend(as_type_of(weight, x), rotation)

    @abstractmethod
    def attend(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """Attend in the precision of the weights: `(..., n, d) -> (..., n, d)`."""


class RegularAttention(Attention):
    """Softmax attention, quadratic in n (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    `softmax(q k^T / sqrt(e)) v`, head by head.
    """

    def attend(self, x: Tensor, rotation: Rotation | None) -> Tensor:  # noqa: D102
        q, k, v = self.project_heads(x, rotation)
        weights = self.attn_drop(softmax_weights(q, k))  # ... h n n
        mixed = self.merge_heads(weights @ v)  # ... n c
        return self.proj_drop(self.to_out(mixed))


class PerformerAttention(Attention):
    """FAVOR+, linear in n (Choromanski et al. 2021, arXiv:2009.14794, lemma 1 and section 2.4).

    The softmax kernel is replaced by positive orthogonal random features w_1 ... w_m,

        phi(x) = exp(w x - |x|^2 / 2) / sqrt(m),    exp(q k) = E[phi(q) . phi(k)],
        out = phi(q) (phi(k)^T v) / (phi(q) . sum_n phi(k)),

    for q and k scaled by e^-1/4. With s_j = sum_n phi_j(k_n) this is the product of two averages:

        out = softmax_j(w_j q + log s_j) softmax_n(w_j k_n - |k_n|^2 / 2) v

    The code computes these averages. So no exponential overflows, no denominator vanishes, and no
    product is larger than the values, in any precision. Each sample and each head has its own
    maxima, so a sample does not depend on the other samples of its batch.

    Args:
        nb_features: Random features m; `int(e * log(e))` unless given.
        ortho_scaling: 0 draws the norms of the features like those of Gaussian vectors; 1 sets them
            to sqrt(e).
        seed: Seed of the features; PyTorch's own generator unless given.

    The features are a buffer of the state dict, because the function depends on them.
    """

    projection_matrix: Tensor

    def __init__(
        self,
        dim: int,
        dim_head: int = 64,
        heads: int | None = None,
        *,
        nb_features: int | None = None,
        ortho_scaling: int = 0,
        seed: int | None = None,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            dim_head,
            heads,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )
        if ortho_scaling not in (0, 1):
            raise ConfigError(f"ortho_scaling must be 0 or 1: got {ortho_scaling!r}")
        self.ortho_scaling = ortho_scaling
        features = nb_features or default_features(dim_head)
        self.register_buffer("projection_matrix", torch.empty(features, dim_head))
        self.redraw_projection_matrix(seed)

    @torch.no_grad()
    def redraw_projection_matrix(self, seed: int | None = None) -> None:
        """Draw new random features in place, from `seed` or PyTorch's own generator."""
        features, dim_head = self.projection_matrix.shape
        drawn = orthogonal_features(features, dim_head, self.ortho_scaling, seed)
        self.projection_matrix.copy_(drawn)

    def attend(self, x: Tensor, rotation: Rotation | None) -> Tensor:  # noqa: D102
        q, k, v = self.project_heads(x, rotation)
        q_logits = at_least_float32(q @ self.projection_matrix.T)  # ... h n m
        few = k.shape[-2] <= self.dim_head  # then n x n weights cost less than m x e averages
        mix = self.mix_few if few else self.mix_many
        return self.proj_drop(self.to_out(self.merge_heads(mix(q_logits, k, v))))

    def mix_few(self, q_logits: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`(Q K) v` with the averages Q and K: q_logits `(..., h, n, m)`, k, v `(..., h, n, e)`."""
        k_logits = at_least_float32(k @ self.projection_matrix.T)  # ... h n m
        k_logits = k_logits - half_square_norms(k).unsqueeze(-1)
        largest = k_logits.amax(-2, keepdim=True)  # ... h 1 m
        phi_k = (k_logits - largest).exp()
        sums = phi_k.sum(-2, keepdim=True)  # ... h 1 m
        q_weights = (q_logits + largest + sums.log()).softmax(-1)  # ... h n m
        k_weights = (phi_k / sums).transpose(-1, -2)  # ... h m n
        return as_type_of(v, q_weights) @ as_type_of(v, k_weights) @ v

    def mix_many(self, q_logits: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`Q (K v)` with the averages Q and K: q_logits `(..., h, n, m)`, k, v `(..., h, n, e)`."""
        k_logits = at_least_float32(self.projection_matrix @ k.transpose(-1, -2))  # ... h m n
        k_logits = k_logits - half_square_norms(k).unsqueeze(-2)
        k_weights = k_logits.softmax(-1)  # ... h m n
        # The largest value of a softmax is one over its sum of exponentials. So the sums need no
        # second pass of exponentials.
        log_sums = k_logits.amax(-1) - k_weights.amax(-1).log()  # ... h m
        q_weights = (q_logits + log_sums.unsqueeze(-2)).softmax(-1)  # ... h n m
        return as_type_of(v, q_weights) @ (as_type_of(v, k_weights) @ v)


class FastAttention(Attention):
    """Additive attention, linear in n (Fastformer, Wu et al. 2021, arXiv:2108.09084, section 3.2).

    Per head, with i over the n tokens:

        global query    q = sum_i alpha_i q_i,   alpha = softmax_i(w_q . q_i / sqrt(e))   (1), (2)
        interaction     p_i = q * k_i                                                     (3)
        global key      k = sum_i beta_i p_i,    beta = softmax_i(w_k . p_i / sqrt(e))    (4), (5)
        key-value       u_i = k * v_i
        output          W_o u_i + q_i

    where `*` multiplies element by element. As published, all heads share one w_q and one w_k, and
    the query in the output is the one before the rotation. The code does not make the p_i, because
    `w_k . p_i = (q * w_k) . k_i`.
    """

    head_mask: Tensor

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
        super().__init__(
            dim,
            dim_head,
            heads,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )
        if self.heads * dim_head != dim:
            raise ConfigError(
                "fastformer adds its query to its output, so heads x dim_head must equal dim: "
                f"got {self.heads} x {dim_head} and {dim}"
            )
        self.Wq = nn.Linear(dim_head, 1, bias=False)
        self.Wk = nn.Linear(dim_head, 1, bias=False)
        mask = torch.eye(self.heads).repeat_interleave(dim_head, dim=1)  # h c
        self.register_buffer("head_mask", mask, persistent=False)

    def attend(self, x: Tensor, rotation: Rotation | None) -> Tensor:  # noqa: D102
        query, key, _ = self.split_weights()
        q, k = F.linear(x, *query), F.linear(x, *key)
        rotated = (q, k) if rotation is None else self.rotate_tokens(x, q, k, rotation)
        return self.combine(x, q, self.find_global_key(*rotated))

    def rotate_tokens(
        self, x: Tensor, q: Tensor, k: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor]:
        """Rotate query and key of the tokens x, each `(..., n, c)`.

        A hook for the exporter, which rotates the pooled query and key instead.
        """
        query, key, _ = self.split_weights()
        return rotate(q, x, rotation, *query), rotate(k, x, rotation, *key)

    def find_global_key(self, q: Tensor, k: Tensor) -> Tensor:
        """Equations (1) to (5): `(..., n, c), (..., n, c) -> (..., 1, c)`."""
        global_query = self.pool(self.weigh(q, self.per_head(self.Wq)), q)  # ... 1 c
        beta = self.weigh(k, global_query * self.per_head(self.Wk))  # ... h n
        return global_query * self.pool(beta, k)

    def combine(self, x: Tensor, q: Tensor, global_key: Tensor) -> Tensor:
        """`W_o (k * v_i) + q_i` of the tokens x, their queries q and the global key.

        A hook for the exporter, which multiplies the matrices first where there are many tokens.
        """
        v = F.linear(self.select_queries(x), *self.split_weights()[2])
        u = as_type_of(v, self.select_queries(global_key)) * v
        return self.proj_drop(self.to_out(u)) + self.select_queries(q)

    def per_head(self, weights: nn.Linear) -> Tensor:
        """One row of logit weights for each head, scaled: `(1, e) -> (h, c)`."""
        rows = at_least_float32(weights.weight).repeat(1, self.heads) * self.scale
        return self.head_mask.to(rows.dtype) * rows

    def weigh(self, x: Tensor, rows: Tensor) -> Tensor:
        """Softmax over the tokens, head by head: `(..., n, c), (..., h, c) -> (..., h, n)`."""
        logits = self.dot(x, rows)  # ... n h
        return self.attn_drop(at_least_float32(logits).transpose(-1, -2).softmax(-1))

    def dot(self, x: Tensor, rows: Tensor) -> Tensor:
        """Product of every token with every row: `(..., n, c), (..., h, c) -> (..., n, h)`."""
        return x @ as_type_of(x, rows).transpose(-1, -2)

    def pool(self, weights: Tensor, x: Tensor) -> Tensor:
        """Weighted sum of the tokens, head by head: `(..., h, n), (..., n, c) -> (..., 1, c)`."""
        pooled = weights @ at_least_float32(x)
        return (pooled * self.head_mask.to(pooled.dtype)).sum(-2, keepdim=True)


MECHANISMS: Mapping[str, type[Attention]] = {
    "regular": RegularAttention,
    "performer": PerformerAttention,
    "fastformer": FastAttention,
}


def half_square_norms(x: Tensor) -> Tensor:
    """`|x|^2 / 2` of each token in at least float32: `(..., n, e) -> (..., n)`."""
    x = at_least_float32(x)
    return (x * x).sum(-1) / 2


def default_features(dim_head: int) -> int:
    """Number of random features that approximate softmax uniformly: e log e (theorem 4)."""
    return max(1, int(dim_head * math.log(dim_head)))


def orthogonal_features(
    features: int, dim_head: int, ortho_scaling: int = 0, seed: int | None = None
) -> Tensor:
    """Rows orthogonal within blocks of e, with Gaussian norms (section 2.4): `(m, e)`."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    blocks = math.ceil(features / dim_head)
    gaussian = torch.randn(blocks, dim_head, dim_head, generator=generator)
    q, r = torch.linalg.qr(gaussian)
    # QR fixes the sign of each direction. With the signs of R's diagonal the directions are
    # isotropic (Mezzadri 2007, arXiv:math-ph/0609050), so the estimator is unbiased.
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    directions = q.transpose(-1, -2).flatten(0, 1)[:features]
    if ortho_scaling == 1:
        return directions * math.sqrt(dim_head)
    norms = torch.randn(features, dim_head, generator=generator).norm(dim=1, keepdim=True)
    return directions * norms
