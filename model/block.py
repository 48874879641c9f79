"""One transformer block: the attention steps of a scheme, then the feed-forward.

Axes: b batch, f h w tokens along time, height and width, g groups of n tokens, d token width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.precision import Rounded, RoundedLinear, as_type_of
from model.rotary import RotaryTables
from model.spacetime import Step


class PatchEmbedding(RoundedLinear):
    """Patches of clips to tokens; the published weight maps whole patches, `(d, p1 p2 c)`.

    Args:
        channels: Channels c of a frame.
        patch_size: Side p of a patch in pixels.
        dim: Token width d.
    """

    def __init__(self, channels: int, patch_size: int, dim: int) -> None:
        super().__init__(channels * patch_size**2, dim)
        self.patch_size = patch_size

    def forward(self, input: Tensor) -> Tensor:
        """Pixels `(b, f, c, h, w)` to tokens `(b, f h w, d)`, by a strided convolution."""
        p = self.patch_size
        filters = rearrange(self.weight, "d (p1 p2 c) -> d c p1 p2", p1=p, p2=p).contiguous()
        images = as_type_of(filters, input).flatten(0, 1).contiguous()  # see `RoundedConv2d`
        patches = F.conv2d(images, filters, self.bias, p)  # (b f) d h w
        return rearrange(patches, "(b f) d h w -> b (f h w) d", f=input.shape[1])


class PreNorm(nn.Module):
    """`fn(norm(x))`, with the published names `norm` and `fn`."""

    def __init__(self, dim: int, fn: nn.Module, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.fn = fn

    def forward(self, x: Tensor, *args: object) -> Tensor:
        """Normalise the last axis, then apply `fn`, which also gets the other arguments."""
        return self.fn(self.norm(x), *args)


class DropPath(nn.Module):
    """Drop the whole branch of a sample with probability `rate` (Huang et al. 2016, 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`(b, ...) -> (b, ...)`; the identity outside training."""
        return self.drop_together(x)[0]

    def drop_together(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Drop the parts of one branch, each `(b, ...)`: a sample loses all of them or none."""
        if self.rate == 0.0 or not self.training:
            return parts
        kept = 1 - self.rate
        keep = parts[0].new_empty(len(parts[0])).bernoulli_(kept) / (kept or 1)
        return tuple(part * keep.view(-1, *(1,) * (part.ndim - 1)) for part in parts)


class FeedForward(Rounded):
    """GEGLU feed-forward (Shazeer 2020, arXiv:2002.05202): `(x W_v * gelu(x W_g)) W_o`."""

    def __init__(self, dim: int, mult: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        # In the published state dict, 1 is the gate and 2 the dropout.
        self.net = nn.Sequential(
            nn.Linear(dim, dim * mult * 2),
            nn.Identity(),
            nn.Dropout(dropout),
            nn.Linear(dim * mult, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(..., d) -> (..., d)`; the weight is split instead of the activations."""
        project_in, _, dropout, project_out = self.net
        assert isinstance(project_in, nn.Linear)
        x = as_type_of(project_in.weight, x)
        weights, bias = project_in.weight.unflatten(0, (2, -1)), project_in.bias  # 2 4d d
        b_value, b_gate = (None, None) if bias is None else bias.unflatten(0, (2, -1))
        value, gate = F.linear(x, weights[0], b_value), F.linear(x, weights[1], b_gate)
        return project_out(dropout(value * F.gelu(gate)))


class Block(nn.Module):
    """One transformer block: the steps of a scheme, then the feed-forward, each with a residual.

    Args:
        dim: Token width d.
        steps: The attention steps; all blocks of a model share the same objects.
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
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.steps = steps
        for step in steps:
            self.add_module(f"attn_{step.name}", PreNorm(dim, attention(), norm_eps))
        for step in steps[:-1]:
            self.add_module(f"fc_{step.name}", RoundedLinear(dim, dim))
        self.mlp = PreNorm(dim, mlp(), norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, cls: Tensor, x: Tensor, rotary: RotaryTables | None) -> tuple[Tensor, Tensor]:
        """Attend and feed forward: class tokens `(b, k, d)` and patch tokens `(b, f h w, d)`.

        The two stay in tensors of their own. All groups share one class token (k = 1), or each
        group has its own (k = g).
        """
        *early, last = self.steps
        for step in early:
            x = x + self.get_submodule(f"fc_{step.name}")(self.attend_patches(step, x, rotary))

        parts = last.group(x)  # of b g n d
        shared = cls.unsqueeze(2)  # b k 1 d
        joined = [
            torch.cat((shared.expand(-1, part.shape[1], -1, -1), part), dim=2) for part in parts
        ]
        attended = self.attend(last, joined, rotary)
        return self.combine(cls, x, attended)

    def attend_patches(self, step: Step, x: Tensor, rotary: RotaryTables | None) -> Tensor:
        """One step of the patch tokens alone: `(b, f h w, d) -> (b, f h w, d)`.

        A hook for the exporter, which may make the groups after the projections.
        """
        return step.ungroup(self.attend(step, step.group(x), rotary))

    def combine(self, cls: Tensor, x: Tensor, attended: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Add the output of the last step, `[(b, g, 1+n, d), ...]`, then the feed-forward.

        A hook for the exporter, which leaves the patch tokens out in the last block.
        """
        cls = cls + merge_class_tokens([part[:, :, 0] for part in attended], cls)
        x = x + self.steps[-1].ungroup([part[:, :, 1:] for part in attended])
        return self.feed_forward(cls, x)

    def feed_forward(self, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Add the feed-forward of the class tokens and of the patch tokens.

        A hook for the exporter, which may take the patch tokens piece by piece.
        """
        more_cls, more_x = self.drop_path.drop_together(self.mlp(cls), self.mlp(x))
        return cls + more_cls, x + more_x

    def attend(self, step: Step, parts: list[Tensor], rotary: RotaryTables | None) -> list[Tensor]:
        """One attention step on grouped tokens, each `(b, g, n, d) -> (b, g, n, d)`."""
        attention = self.get_submodule(f"attn_{step.name}")
        attended = (
            attention(part, None if rotary is None else rotary[key])
            for part, key in zip(parts, step.keys, strict=True)
        )
        return list(self.drop_path.drop_together(*attended))


def merge_class_tokens(parts: list[Tensor], cls: Tensor) -> Tensor:
    """Class tokens of the groups `[(b, g, d), ...]` to `(b, k, d)`: themselves, or their mean."""
    tokens = as_type_of(cls, parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
    return tokens if tokens.shape[1] == cls.shape[1] else tokens.mean(1, keepdim=True)
