"""The published models as baselines of the timings: FastTimeSformer in its own layout, and ViT.

`PublishedTimeSformer` has the computation and the tensor layout of the package (0.2.2), and no code
from it. One projection is cut into query, key and value. Heads are folded into the batch. Rotary
pairs are unbound and stacked. Softmax runs over the published axis. Contractions use einsum. Class
token and patch tokens share one tensor. A rearrangement and a linear map embed the patches. The
outputs equal those of `model/`.

With `upstream` semantics it computes the same as the package. This includes the performer's random
features, which the package computes and drops. With `paper` semantics it is the einsum form of the
papers.

Axes: b batch, f h w tokens along time, height and width, g groups of n tokens, d token width,
k heads, e channels of a head, m random features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from model import FastTimeSformer
from model.attention import default_features
from model.block import PreNorm
from model.config import FastTimeSformerConfig, ViTConfig
from model.rotary import FrameRotary, ImageRotary

# The order in which the package reads its tokens, and the order of the papers.
TOKEN_ORDER = {"upstream": "h w f", "paper": "f h w"}
KERNEL_EPSILON = 1e-4  # the package adds it to its features; the paper's estimator has none
Angles = tuple[Tensor, Tensor]  # cosines and sines, each (n, e)


def as_published(model: FastTimeSformer) -> PublishedTimeSformer:
    """Copy the weights into the published layout; the function stays the same, in evaluation mode.

    Raises:
        ValueError: if the package has no such model (another scheme, no rotary positions).
    """
    published = PublishedTimeSformer(model.config)
    published.load_state_dict(model.state_dict())
    return published.to(next(model.parameters()).dtype).eval()


class HuggingFaceTimeSformer(nn.Module):
    """The TimeSformer of transformers with fresh weights; it returns the logits alone."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        from transformers import TimesformerConfig, TimesformerForVideoClassification

        theirs: dict[str, Any] = {
            "image_size": config.height,
            "patch_size": config.patch_size,
            "num_frames": config.frames,
            "hidden_size": config.dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "intermediate_size": config.mlp_dim or 4 * config.dim,
            "num_labels": config.num_classes,
        }
        self.model = TimesformerForVideoClassification(TimesformerConfig(**theirs))

    def forward(self, video: Tensor) -> Tensor:
        """`(b, f, c, h, w)` to `(b, classes)`."""
        return self.model(video).logits


class PublishedTimeSformer(nn.Module):
    """Divided attention in the published layout; the state dict is that of `FastTimeSformer`."""

    def __init__(self, config: FastTimeSformerConfig) -> None:
        super().__init__()
        if config.attn_type != "divided" or not (config.rotary_emb and config.frames_first):
            raise ValueError("only divided attention with rotary positions, frames first")
        self.patch_size = config.patch_size
        self.grid = config.grid
        self.upstream = config.semantics == "upstream"
        self.project_in = nn.Linear(config.channels * config.patch_size**2, config.dim)
        self.cls_token = nn.Parameter(torch.empty(1, config.dim))
        self.frame_rot_emb = FrameRotary(config.dim_head, half_split=self.upstream)
        self.image_rot_emb = ImageRotary(config.dim_head)
        self.blocks = nn.ModuleList(PublishedBlock(config) for _ in range(config.depth))
        self.to_out = PreNorm(config.dim, nn.Linear(config.dim, config.num_classes))

    def forward(self, video: Tensor) -> Tensor:
        """`(b, f, c, h, w)` to `(b, classes)`."""
        p, like = self.patch_size, self.cls_token
        patches = rearrange(video, "b f c (h p) (w q) -> b (f h w) (p q c)", p=p, q=p)
        cls = repeat(self.cls_token, "one d -> b one d", b=len(video))
        x = torch.cat((cls, self.project_in(patches)), dim=1)
        time = _tabulate(self.frame_rot_emb.angles(video.shape[1]), like)
        place = _tabulate(self.image_rot_emb.angles(*self.grid).flatten(0, 1), like)
        for block in self.blocks:
            x = block(x, time, place)
        return self.to_out(x[:, 0])


class PublishedBlock(nn.Module):
    """Attention over time, then over space, then the feed-forward: `(b, 1+fhw, d)` both ways."""

    def __init__(self, config: FastTimeSformerConfig) -> None:
        super().__init__()
        attention = PUBLISHED_MECHANISMS[config.attn_mechanism]
        self.order = TOKEN_ORDER[config.semantics]
        self.sizes = dict(zip("fhw", (config.frames, *config.grid), strict=True))
        self.attn_t = PreNorm(config.dim, attention(config))
        self.fc_t = nn.Linear(config.dim, config.dim)
        self.attn_s = PreNorm(config.dim, attention(config))
        self.mlp = PreNorm(config.dim, PublishedFeedForward(config.dim))

    def forward(self, x: Tensor, time: Angles, place: Angles) -> Tensor:
        """`(b, 1+fhw, d) -> (b, 1+fhw, d)`."""
        frames, tokens = self.sizes["f"], f"b ({self.order}) d"
        cls, patches = x[:, :1], x[:, 1:]

        grouped = rearrange(patches, f"{tokens} -> (b h w) f d", **self.sizes)
        attended = rearrange(self.attn_t(grouped, time), f"(b h w) f d -> {tokens}", **self.sizes)
        patches = patches + self.fc_t(attended)

        grouped = rearrange(patches, f"{tokens} -> (b f) (h w) d", **self.sizes)
        shared = repeat(cls, "b one d -> (b f) one d", f=frames)
        attended = self.attn_s(torch.cat((shared, grouped), dim=1), place)
        more_cls = rearrange(attended[:, 0], "(b f) d -> b f d", f=frames).mean(1, keepdim=True)
        more = rearrange(attended[:, 1:], f"(b f) (h w) d -> {tokens}", **self.sizes)

        x = torch.cat((cls, patches), dim=1) + torch.cat((more_cls, more), dim=1)
        return x + self.mlp(x)


class PublishedAttention(nn.Module):
    """The parts that the mechanisms share: projections, heads folded into the batch, rotation."""

    def __init__(self, config: FastTimeSformerConfig) -> None:
        super().__init__()
        self.dim_head = config.dim_head
        self.heads = config.num_heads
        self.scale = config.dim_head**-0.5
        self.upstream = config.semantics == "upstream"
        inner = self.heads * self.dim_head
        self.to_qkv = nn.Linear(config.dim, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.dim)

    def forward(self, x: Tensor, angles: Angles) -> Tensor:
        """`(g, n, d) -> (g, n, d)`."""
        query, key, value = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = map(self.fold, (query, key, value))  # (g k) n e
        return self.attend(query, rotate(q, angles), rotate(k, angles), v)

    def attend(self, query: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Apply the mechanism and `to_out`; `query` is `(g, n, c)` before heads and rotation."""
        raise NotImplementedError

    def fold(self, x: Tensor) -> Tensor:
        """Fold the heads into the batch: `(g, n, k e) -> (g k, n, e)`."""
        return rearrange(x, "g n (k e) -> (g k) n e", k=self.heads)

    def unfold(self, x: Tensor) -> Tensor:
        """Unfold the heads from the batch: `(g k, n, e) -> (g, n, k e)`."""
        return rearrange(x, "(g k) n e -> g n (k e)", k=self.heads)


class PublishedRegular(PublishedAttention):
    """`softmax(q k^T / sqrt(e)) v`."""

    def attend(self, query: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: D102
        logits = torch.einsum("b i e, b j e -> b i j", q, k) * self.scale
        return self.to_out(self.unfold(logits.softmax(dim=-1) @ v))


class PublishedFastformer(PublishedAttention):
    """Additive attention; softmax runs over the tokens, the axis before the last."""

    def __init__(self, config: FastTimeSformerConfig) -> None:
        super().__init__(config)
        self.Wq = nn.Linear(config.dim_head, 1, bias=False)
        self.Wk = nn.Linear(config.dim_head, 1, bias=False)

    def attend(self, query: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: D102
        alpha = F.softmax(self.Wq(q) * self.scale, dim=-2)  # (g k) n 1
        p = (alpha * q).sum(-2, keepdim=True) * k
        beta = F.softmax(self.Wk(p) * self.scale, dim=-2)
        summed = -1 if self.upstream else -2  # channels, or tokens as in the paper
        global_key = (beta * p).sum(summed, keepdim=True)
        return self.to_out(self.unfold(global_key * v)) + query


class PublishedPerformer(PublishedAttention):
    """Linear attention on random features; upstream computes the features and drops them."""

    projection_matrix: Tensor

    def __init__(self, config: FastTimeSformerConfig) -> None:
        super().__init__(config)
        features = default_features(config.dim_head)
        self.register_buffer("projection_matrix", torch.empty(features, config.dim_head))

    def attend(self, query: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: D102
        q, k, v = (rearrange(x, "(g k) n e -> g k n e", k=self.heads) for x in (q, k, v))
        # Upstream takes the keys' maximum over the batch, the paper over each sample and head.
        of_keys = tuple(range(k.ndim)) if self.upstream else (-2, -1)
        phi_q, phi_k = self.features(q, (-1,)), self.features(k, of_keys)
        if not self.upstream:
            q, k = phi_q, phi_k
        inverse = 1.0 / torch.einsum("g k n m, g k m -> g k n", q, k.sum(-2))
        context = torch.einsum("g k n m, g k n e -> g k m e", k, v)
        mixed = torch.einsum("g k m e, g k n m, g k n -> g k n e", context, q, inverse)
        return self.to_out(rearrange(mixed, "g k n e -> g n (k e)"))

    def features(self, x: Tensor, over: tuple[int, ...]) -> Tensor:
        """`exp(w x - |x|^2 / 2) / sqrt(m)`, stabilised by the maximum over the axes `over`."""
        groups, heads, _, dim_head = x.shape
        matrix = self.projection_matrix
        weights = repeat(matrix, "m e -> g k m e", g=groups, k=heads)
        shrink = dim_head**-0.25
        logits = torch.einsum("g k n e, g k m e -> g k n m", x * shrink, weights)
        norms = (x**2).sum(-1, keepdim=True) * (shrink**2 / 2)
        phi = torch.exp(logits - norms - self.largest(logits, norms, over))
        return (phi + KERNEL_EPSILON if self.upstream else phi) * len(matrix) ** -0.5

    def largest(self, logits: Tensor, norms: Tensor, over: tuple[int, ...]) -> Tensor:
        """The maximum to subtract before the exponential; upstream omits the norms from it."""
        if self.upstream:
            return logits.max() if len(over) > 1 else logits.amax(over, keepdim=True)
        return (logits - norms).amax(over, keepdim=True)


class PublishedFeedForward(nn.Module):
    """GEGLU: one projection gives value and gate."""

    def __init__(self, dim: int, mult: int = 4) -> None:
        super().__init__()
        # Places 1 and 2 hold the gate and the dropout in the published state dict.
        self.net = nn.ModuleList(
            (
                nn.Linear(dim, dim * mult * 2),
                nn.Identity(),
                nn.Identity(),
                nn.Linear(dim * mult, dim),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(..., d) -> (..., d)`."""
        value, gate = self.net[0](x).chunk(2, dim=-1)
        return self.net[3](value * F.gelu(gate))


PUBLISHED_MECHANISMS = {
    "regular": PublishedRegular,
    "fastformer": PublishedFastformer,
    "performer": PublishedPerformer,
}


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotate the channel pairs of all tokens except the class token, `(b, n, e)`."""
    cos, sin = angles
    extra = x.shape[1] - len(cos)  # 1 with a class token in front, which has no position
    cls, x = x[:, :extra], x[:, extra:]
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = rearrange(turned, "b n (j two) -> b n j two", two=2).unbind(-1)
    turned = turned * cos + torch.stack((-second, first), dim=-1).flatten(-2) * sin
    x = torch.cat((turned, rest), dim=-1)  # the package copies even where `rest` is empty
    return torch.cat((cls, x), dim=1) if extra else x


def _tabulate(angles: Tensor, like: Tensor) -> Angles:
    return angles.cos().to(like), angles.sin().to(like)
