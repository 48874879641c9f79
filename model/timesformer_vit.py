"""TimeSformerViT: the family of facebookresearch/TimeSformer and of Hugging Face transformers.

A ViT whose blocks attend over space and time (Bertasius et al. 2021, arXiv:2102.05095), with
learned positions in space and time. Any scheme can have any mechanism. The published checkpoints
are `regular` with `divided`, `joint` or `space`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.attention import MECHANISMS
from model.block import Block
from model.classifier import VideoClassifier
from model.config import ActivationName, MechanismName, SchemeName, ViTConfig
from model.precision import Rounded, RoundedConv2d, as_type_of
from model.spacetime import SCHEMES, Grid


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation of GELU by a sigmoid: `x sigmoid(1.702 x)`."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "selu": F.selu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Mlp(Rounded):
    """Feed-forward of a ViT: `W_2 act(W_1 x + b_1) + b_2`."""

    def __init__(self, dim: int, hidden: int, activation: ActivationName, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., d) -> (..., d)`."""
        x = as_type_of(self.fc1.weight, x)
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(x)))))


class ViT(VideoClassifier):
    """What ViTs of a clip share: blocks without rotary tables, a last norm, and a classifier."""

    blocks: nn.ModuleList
    norm: nn.LayerNorm
    head: nn.Module

    @abstractmethod
    def embed(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens `(b, k, d)` and patch tokens `(b, f h w, d)` with their positions."""

    def states(  # noqa: D102
        self, video: Tensor, *more: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        del more
        self.check_shape(video)
        cls, x = self.embed(video)
        yield cls, x
        for block in self.blocks:
            cls, x = block(cls, x, None)
            yield cls, x

    def normalise(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return self.norm(tokens)

    def classify(self, cls: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.norm(cls))


class TimeSformerViT(ViT):
    """Video transformer of the facebookresearch and Hugging Face family.

    Args:
        frames: Frames f of a clip.
        height: Height of a frame in pixels, a multiple of `patch_size`.
        width: Width of a frame in pixels, a multiple of `patch_size`.
        num_classes: Logits of a clip; 0 for no classifier: the output is then the class token after
            the last norm, `(b, dim)`.
        dim: Token width d.
        depth: Blocks.
        heads: Attention heads, of `dim // heads` channels.
        patch_size: Side of a patch in pixels.
        scheme: `space`, `joint`, `divided`, `local-global` or `axial`.
        attn: `regular`, `performer` or `fastformer`.
        channels: Channels c of a frame.
        mlp_dim: Width of the feed-forward; `4 * dim` unless given.
        qkv_bias: Add a bias to query, key and value.
        hidden_act: A name of `ACTIVATIONS`: `gelu`, `relu`, `gelu_new` (tanh), `quick_gelu`, ...
        norm_eps: Added to the variance in the normalisations.
        drop_path: Stochastic depth rate of the last block in training, falling linearly to the
            first.
        attn_dropout: Dropout rate of attention weights in training.
        proj_dropout: Dropout rate of embeddings and projections in training.
        last_norm_eps: That of the norm after the last block; `norm_eps` unless given.

    Raises:
        ConfigError: if the sizes do not fit together or a name is unknown.
    """

    family = "timesformer_vit"
    config_class = ViTConfig
    config: ViTConfig

    def __init__(
        self,
        frames: int = 8,
        height: int = 224,
        width: int = 224,
        num_classes: int = 400,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        patch_size: int = 16,
        scheme: SchemeName = "divided",
        attn: MechanismName = "regular",
        *,
        channels: int = 3,
        mlp_dim: int | None = None,
        qkv_bias: bool = True,
        hidden_act: ActivationName = "gelu",
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        attn_dropout: float = 0.0,
        proj_dropout: float = 0.0,
        last_norm_eps: float | None = None,
    ) -> None:
        config = ViTConfig(
            frames=frames,
            channels=channels,
            height=height,
            width=width,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            patch_size=patch_size,
            scheme=scheme,
            attn=attn,
            mlp_dim=mlp_dim,
            qkv_bias=qkv_bias,
            hidden_act=hidden_act,
            norm_eps=norm_eps,
            drop_path=drop_path,
            attn_dropout=attn_dropout,
            proj_dropout=proj_dropout,
            last_norm_eps=last_norm_eps,
        )
        super().__init__(config)
        grid = Grid(frames, *config.grid)
        per_frame = grid.height * grid.width
        self.patch_embed = RoundedConv2d(channels, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + per_frame, dim))
        if scheme != "space":
            self.time_embed = nn.Parameter(torch.zeros(1, frames, dim))
        self.dropout = nn.Dropout(proj_dropout)

        attention = partial(
            MECHANISMS[attn],
            dim,
            dim // heads,
            heads,
            qkv_bias=qkv_bias,
            attn_drop=attn_dropout,
            proj_drop=proj_dropout,
        )
        mlp = partial(Mlp, dim, mlp_dim or 4 * dim, hidden_act, proj_dropout)
        steps = SCHEMES[scheme](grid)
        self.steps = nn.ModuleList(steps)  # here their buffers move with the model
        self.blocks = nn.ModuleList(
            Block(dim, steps, attention, mlp, drop_path=rate, norm_eps=norm_eps)
            for rate in torch.linspace(0, drop_path, depth, device="cpu").tolist()
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps if last_norm_eps is None else last_norm_eps)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.class_tokens = frames if scheme == "space" else 1
        self._initialise()

    def join_tokens(self, cls: Tensor, x: Tensor) -> Tensor:
        """Patches are in the order `(h w f)`; `space` keeps the frames apart."""
        if self.class_tokens == 1:
            x = rearrange(x, "b (f n) d -> b (n f) d", f=self.config.frames)
        return super().join_tokens(cls, x)

    def order_attentions(self, weights: Tensor) -> Tensor:
        """A group of `joint` has its patches in the order `(h w f)`."""
        if self.config.scheme != "joint":
            return weights
        patches = torch.arange(1, weights.shape[-1], device=weights.device)
        order = F.pad(rearrange(patches, "(f n) -> (n f)", f=self.config.frames), (1, 0))
        return weights.index_select(-1, order).index_select(-2, order)

    def embed(self, video: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        frames = self.config.frames
        patches = self.patch_embed(video.flatten(0, 1))  # (b f) d h w
        x = rearrange(as_type_of(self.cls_token, patches), "(b f) d h w -> b f (h w) d", f=frames)
        x = x + self.pos_embed[:, None, 1:]
        if self.config.scheme != "space":
            x = x + self.time_embed[:, :, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], self.class_tokens, -1)
        return self.dropout(cls), self.dropout(x.flatten(1, 2))

    def _initialise(self) -> None:
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        if self.config.scheme != "space":
            nn.init.trunc_normal_(self.time_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
