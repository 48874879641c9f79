"""SpaceTimeTransformer: the family of Frozen-in-Time, EgoVLP and LaViLa (arXiv:2104.00650).

A ViT with divided attention. Its blocks differ from those of `TimeSformerViT` in two ways. The
class token takes part in both steps: see `timesformer_layer`. And space attends to what time adds,
but the sum of the two is not kept:

    y = x + space(norm(x + time(norm(x)))),    x' = y + mlp(norm(y))

Source: github.com/m-bain/frozen-in-time, model/video_transformer.py. LaViLa (arXiv:2212.04501) has
the same blocks, and may start from the weights of CLIP: see `ln_pre`.

Axes: b batch, f h w tokens along time, height and width, d token width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn

from model.block import DropPath, PreNorm
from model.config import ClipConfig, SpaceTimeConfig
from model.precision import RoundedConv2d, as_type_of
from model.spacetime import SCHEMES, Grid, Step
from model.timesformer_layer import GroupAttention
from model.timesformer_vit import Mlp, ViT


class SpaceTimeBlock(nn.Module):
    """One block: attention through time inside the residual of attention over space.

    Args:
        dim: Token width d.
        steps: Time and space; all blocks of a model share the same objects.
        attention: Makes the attention of one step.
        mlp: Makes the feed-forward.
        drop_path: Stochastic depth rate in training.
        norm_eps: Added to the variance in the normalisations.
    """

    def __init__(
        self,
        dim: int,
        steps: tuple[Step, ...],
        attention: Callable[[], nn.Module],
        mlp: Callable[[], nn.Module],
        *,
        drop_path: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.attn_t = PreNorm(dim, attention(), norm_eps)
        self.attn_s = PreNorm(dim, attention(), norm_eps)
        self.mlp = PreNorm(dim, mlp(), norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, cls: Tensor, x: Tensor, _rotary: None = None) -> tuple[Tensor, Tensor]:
        """Attend and feed forward: class token `(b, 1, d)` and patch tokens `(b, f h w, d)`."""
        time, space = self.steps
        more_cls, more_x = _attend(self.attn_t, time, cls, x)
        more_cls, more_x = self.drop_path.drop_together(
            *_attend(self.attn_s, space, cls + more_cls, x + more_x)
        )
        cls, x = cls + more_cls, x + more_x
        more_cls, more_x = self.drop_path.drop_together(self.mlp(cls), self.mlp(x))
        return cls + more_cls, x + more_x


def _attend(attention: PreNorm, step: Step, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return attention(x, attention.norm(cls), step, None, None, None)


class SpaceTimeTransformer(ViT):
    """Video transformer of the family of Frozen-in-Time, EgoVLP and LaViLa.

    Args:
        config: All sizes and choices. Without classes the output is the class token after the last
            norm, `(b, dim)`.
    """

    family = "frozen_in_time"
    config_class = SpaceTimeConfig
    config: SpaceTimeConfig

    def __init__(self, config: SpaceTimeConfig) -> None:
        super().__init__(config)
        dim, patch, eps = config.dim, config.patch_size, config.norm_eps
        grid = Grid(config.frames, *config.grid)
        self.patch_embed = RoundedConv2d(config.channels, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid.height * grid.width, dim))
        self.time_embed = nn.Parameter(torch.zeros(1, config.frames, dim))
        # LaViLa gives this norm the eps of CLIP, and the other norms that of `norm_eps`.
        self.ln_pre = nn.LayerNorm(dim, eps=1e-5) if config.ln_pre else nn.Identity()
        self.dropout = nn.Dropout(config.proj_dropout)

        attention = partial(
            GroupAttention,
            dim,
            dim // config.heads,
            config.heads,
            config.proj_dropout,
            qkv_bias=config.qkv_bias,
        )
        hidden = config.mlp_dim or 4 * dim
        mlp = partial(Mlp, dim, hidden, config.hidden_act, config.proj_dropout)
        steps = SCHEMES["divided"](grid)
        self.blocks = nn.ModuleList(
            SpaceTimeBlock(dim, steps, attention, mlp, drop_path=rate, norm_eps=eps)
            for rate in torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        for parameter in (self.cls_token, self.pos_embed, self.time_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    @classmethod
    def from_config(cls, config: ClipConfig) -> Self:
        """Build the model that a configuration describes."""
        assert isinstance(config, SpaceTimeConfig)
        return cls(config)

    def embed(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Class token `(b, 1, d)` and patch tokens `(b, f h w, d)` with their positions."""
        patches = as_type_of(self.cls_token, self.patch_embed(video.flatten(0, 1)))  # (b f) d h w
        x = rearrange(patches, "(b f) d h w -> b f (h w) d", f=self.config.frames)
        x = x + self.pos_embed[:, None, 1:] + self.time_embed[:, :, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], 1, -1)
        return self.dropout(self.ln_pre(cls)), self.dropout(self.ln_pre(x.flatten(1, 2)))
