"""One transformer block: the attention steps of a scheme, then the feed-forward.

Axes: b batch, f h w tokens along time, height and width, g groups of n tokens, d token width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.config import FastTimeSformerConfig
from model.rotary import RotaryTables
from model.spacetime import Grid, Step


class PreNorm(nn.Module):
    """`fn(norm(x))`, with the published names `norm` and `fn`."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor, *args: object) -> Tensor:
        """Normalise the last axis, then apply `fn` with whatever else it takes."""
        return self.fn(self.norm(x), *args)


class DropPath(nn.Module):
    """Drop the whole branch of a sample with probability `rate` (Huang et al. 2016, 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`(b, ...) -> (b, ...)`; the identity outside training."""
        (x,) = self.together(x)
        return x

    def together(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The parts of one branch: a sample loses all of them or none."""
        if self.rate == 0.0 or not self.training:
            return parts
        keep = parts[0].new_empty(len(parts[0])).bernoulli_(1 - self.rate) / (1 - self.rate)
        return tuple(part * keep.view(-1, *(1,) * (part.ndim - 1)) for part in parts)


class FeedForward(nn.Module):
    """GEGLU feed-forward (Shazeer 2020, arXiv:2002.05202): `(x W_v * gelu(x W_g)) W_o`."""

    def __init__(self, dim: int, mult: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        # Places 1 and 2 hold the gate and the dropout in the published state dict.
        self.net = nn.Sequential(
            nn.Linear(dim, dim * mult * 2),
            nn.Identity(),
            nn.Dropout(dropout),
            nn.Linear(dim * mult, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(..., d) -> (..., d)`; the weight is split, not the activations."""
        project_in, _, dropout, project_out = self.net
        assert isinstance(project_in, nn.Linear)
        w_value, w_gate = project_in.weight.unflatten(0, (2, -1))  # 4d d
        b_value, b_gate = project_in.bias.unflatten(0, (2, -1))
        hidden = F.linear(x, w_value, b_value) * F.gelu(F.linear(x, w_gate, b_gate))
        return project_out(dropout(hidden))


class Block(nn.Module):
    """One transformer block: the steps of a scheme, then the feed-forward, each with residual."""

    def __init__(
        self, config: FastTimeSformerConfig, steps: tuple[Step, ...], mechanism: type[Attention]
    ) -> None:
        super().__init__()
        dim = config.dim
        self.steps, self.grid = steps, Grid(config.frames, *config.grid)
        for step in steps:
            attention = mechanism(
                dim,
                config.dim_head,
                config.num_heads,
                attn_drop=config.attn_dropout,
                proj_drop=config.proj_dropout,
            )
            self.add_module(f"attn_{step.name}", PreNorm(dim, attention))
        for step in steps[:-1]:
            self.add_module(f"fc_{step.name}", nn.Linear(dim, dim))
        self.mlp = PreNorm(dim, FeedForward(dim, dropout=config.proj_dropout))
        self.drop_path = DropPath(config.drop_path)

    def forward(self, cls: Tensor, x: Tensor, rotary: RotaryTables | None) -> tuple[Tensor, Tensor]:
        """Class token `(b, 1, d)` and patch tokens `(b, f h w, d)`, kept apart throughout."""
        *early, last = self.steps
        for step in early:
            attended = self.attend(step, step.group(x, self.grid), rotary)
            x = x + self.get_submodule(f"fc_{step.name}")(step.ungroup(attended, self.grid))

        grouped = last.group(x, self.grid)  # b g n d
        shared = cls.unsqueeze(1).expand(-1, grouped.shape[1], -1, -1)  # b g 1 d
        attended = self.attend(last, torch.cat((shared, grouped), dim=2), rotary)
        cls = cls + mean_over_groups(attended[:, :, :1])
        x = x + last.ungroup(attended[:, :, 1:], self.grid)

        more_cls, more_x = self.drop_path.together(self.mlp(cls), self.mlp(x))
        return cls + more_cls, x + more_x

    def attend(self, step: Step, grouped: Tensor, rotary: RotaryTables | None) -> Tensor:
        """One attention step on grouped tokens, `(b, g, n, d) -> (b, g, n, d)`."""
        rotation = None if rotary is None else rotary[step.name]
        return self.drop_path(self.get_submodule(f"attn_{step.name}")(grouped, rotation))


def mean_over_groups(cls: Tensor) -> Tensor:
    """`(b, g, 1, d) -> (b, 1, d)`; no reduction where there is one group."""
    return cls.squeeze(1) if cls.shape[1] == 1 else cls.mean(1)
