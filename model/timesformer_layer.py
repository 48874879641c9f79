"""One layer of the timesformer-pytorch package: attention with a class token that sees the clip.

Each step attends in groups, and with R the rotation of a token:

    a patch attends to its group and the class token:   softmax(R q [k_cls, R k]^T) [v_cls, v]
    the class token attends to all tokens of the clip:  softmax(q_cls [k_cls, k]^T) [v_cls, v]

So rotary positions rotate the patches only where they attend to other patches.

Axes: b batch, f h w tokens along time, height and width, g groups of n tokens, d token width,
c = heads x e channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.block import PreNorm
from model.precision import as_type_of
from model.projections import HeadProjections, project_rotated, softmax_weights
from model.rotary import RotaryTables, Rotation, rotate
from model.spacetime import Grid, Step


class GroupAttention(HeadProjections):
    """Softmax attention of patches to their group, and of the class token to the whole clip.

    Args:
        dim: Token width d.
        dim_head: Channels of a head e.
        heads: Heads.
        dropout: Dropout rate of the output in training. No attention weights are dropped, as
            in the published package.
        qkv_bias: Add a bias to query, key and value.
    """

    head_mask: Tensor

    def __init__(
        self, dim: int, dim_head: int, heads: int, dropout: float, *, qkv_bias: bool = False
    ) -> None:
        super().__init__(dim, dim_head, heads, qkv_bias=qkv_bias, proj_drop=dropout)
        self.to_out = nn.Sequential(self.to_out, self.proj_drop)  # the published names
        mask = torch.eye(heads).repeat_interleave(dim_head, dim=1)  # heads c
        self.register_buffer("head_mask", mask, persistent=False)

    def forward(
        self,
        x: Tensor,
        cls: Tensor,
        step: Step,
        rotation: Rotation | None,
        group_bias: Tensor | None,
        class_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            x: Patch tokens `(b, f h w, d)`.
            cls: Class token `(b, 1, d)`.
            step: Lays the patch tokens out in groups.
            rotation: Rotary angles of the n tokens of a group, or None.
            group_bias: Added to the logits of the patches, `(b, 1, 1, 1, 1+n)`, or None.
            class_bias: Added to the logits of the class token, `(b, 1, 1 + g n)`, or None.

        Returns:
            Attended class token and patch tokens.
        """
        query, key, value = self.split_weights()
        x, cls = as_type_of(query.weight, x), as_type_of(query.weight, cls)
        head_mask = as_type_of(cls, self.head_mask)
        if rotation is not None:
            rotation = Rotation(*(as_type_of(x, table) for table in rotation))
        cls_q = project_rotated(cls, query, None, self.scale)  # b 1 c
        cls_k, cls_v = F.linear(cls, *key), F.linear(cls, *value)
        x = step.group(x)[0]  # b g n d
        q = project_rotated(x, query, rotation, self.scale)  # b g n c
        k, v = F.linear(x, *key), F.linear(x, *value)

        all_k = torch.cat((cls_k, k.flatten(1, 2)), dim=1)  # b 1+gn c
        all_v = torch.cat((cls_v, v.flatten(1, 2)), dim=1)  # b 1+gn c
        weights = softmax_weights(cls_q * head_mask, all_k, class_bias)  # b heads 1+gn
        cls = ((weights @ all_v) * head_mask).sum(-2, keepdim=True)

        if rotation is not None:
            k = rotate(k, x, rotation, *key)
        k, v = _prepend(cls_k, k), _prepend(cls_v, v)  # b g 1+n c
        q, k, v = self.split_heads(q), self.split_heads(k), self.split_heads(v)
        x = self.merge_heads(softmax_weights(q, k, group_bias) @ v)
        return self.to_out(cls), self.to_out(step.ungroup([x]))


class TokenShift(nn.Module):
    """Apply `fn` to tokens that take channels of the next and of the last frame.

    The channels of a patch are (next frame, this frame, last frame, this frame). The first three
    parts are `d // 3` channels wide. Channels of frames beyond the clip are zero.
    """

    from_next: Tensor
    from_last: Tensor

    def __init__(self, grid: Grid, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.per_frame = grid.height * grid.width
        third = torch.arange(dim) // (dim // 3)
        self.register_buffer("from_next", third == 0, persistent=False)
        self.register_buffer("from_last", third == 2, persistent=False)

    def forward(self, x: Tensor, *args: object) -> Tensor:
        """Shift the patch tokens `(b, f h w, d)`; `fn` also gets the other arguments."""
        n = self.per_frame
        padded = F.pad(x, (0, 0, n, n))  # a frame of zeros before and after
        # Channels are chosen by a mask: runtimes are slow at cutting and joining the last axis.
        x = torch.where(self.from_last, padded[:, : -2 * n], x)
        return self.fn(torch.where(self.from_next, padded[:, 2 * n :], x), *args)


class Layer(nn.ModuleList):
    """The attention steps, then the feed-forward, each with a residual: published names 0, 1, 2.

    Args:
        dim: Token width d.
        steps: The attention steps; all layers of a model share the same objects.
        attention: Makes the attention of one step.
        feed_forward: Makes the feed-forward.
        wrap: Wraps each of these modules, behind its norm.
    """

    def __init__(
        self,
        dim: int,
        steps: tuple[Step, ...],
        attention: Callable[[], nn.Module],
        feed_forward: Callable[[], nn.Module],
        wrap: Callable[[nn.Module], nn.Module],
    ) -> None:
        last = feed_forward()  # made first, as published, so that a seed gives the same weights
        branches = [*(attention() for _ in steps), last]
        super().__init__(PreNorm(dim, wrap(branch)) for branch in branches)
        self.steps = steps

    def forward(
        self,
        cls: Tensor,
        x: Tensor,
        rotary: RotaryTables | None,
        biases: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Attend and feed forward: class token `(b, 1, d)` and patch tokens `(b, f h w, d)`."""
        *attentions, feed_forward = cast("Iterable[PreNorm]", self)
        for step, attention in zip(self.steps, attentions, strict=True):
            more_cls, more_x = attention(
                x,
                attention.norm(cls),
                step,
                None if rotary is None else rotary[step.name],
                biases.get(step.name),
                biases.get(f"cls_{step.name}"),
            )
            cls, x = cls + more_cls, x + more_x
        # The class token is never shifted.
        inner = feed_forward.fn
        unshifted = inner.fn if isinstance(inner, TokenShift) else inner
        return cls + unshifted(feed_forward.norm(cls)), x + feed_forward(x)


def _prepend(own: Tensor, rest: Tensor) -> Tensor:
    """Put the class token before each group: `(b, 1, c), (b, g, n, c) -> (b, g, 1+n, c)`."""
    return torch.cat((own.unsqueeze(1).expand(-1, rest.shape[1], -1, -1), rest), dim=2)
