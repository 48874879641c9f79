"""Rotary position embedding: tables that are constants of the graph, and their application.

RoFormer (Su et al. 2021, arXiv:2104.09864) rotates each pair of channels of a query or key by an
angle that grows with the position, so that their product depends on the distance alone. Time uses
the frequencies of section 3.3. Height and width use one half of the channels each.

Axes: f frames, h w patches down and across, n tokens of a group, e channels of a head, c heads x e.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn


class Rotation(NamedTuple):
    """Cosines and sines of the angles of the tokens of a group, each `(n, c)`.

    The sine of the first channel of each pair is negated, as `rotate` needs it.
    """

    cos: Tensor
    sin: Tensor


class _Frequencies(nn.Module):
    """Keeps its buffer in float32, as published checkpoints do, also where the model is cast."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(getattr(self, name).device)
        return self


class FrameRotary(_Frequencies):
    """Angles along time; the frequencies are the state of the published `frame_rot_emb`.

    Args:
        dim_head: Channels of a head, even.
        half_split: Lay the angles out as two equal halves instead of equal pairs. The published
            package does so although it rotates pairs. The result is not a rotation, but its
            checkpoints were trained with it.
    """

    inv_freqs: Tensor

    def __init__(self, dim_head: int, *, half_split: bool = False) -> None:
        super().__init__()
        self.half_split = half_split
        exponents = torch.arange(0, dim_head, 2).float() / dim_head
        self.register_buffer("inv_freqs", 1.0 / 10000**exponents)

    def angles(self, frames: int) -> Tensor:
        """Radians in float64, `(f, e)`."""
        positions = torch.arange(frames, dtype=torch.float64)
        angles = positions[:, None] * self.inv_freqs.cpu().double()
        pattern = "f j -> f (two j)" if self.half_split else "f j -> f (j two)"
        return repeat(angles, pattern, two=2)


class ImageRotary(_Frequencies):
    """Angles along height and width; the scales are the state of the published `image_rot_emb`.

    Channels that do not fill a pair for both axes are not rotated (angle zero).
    """

    scales: Tensor

    def __init__(self, dim_head: int, *, max_freq: float = 10.0) -> None:
        super().__init__()
        self.dim_head = dim_head
        scales = torch.logspace(0.0, math.log2(max_freq / 2), dim_head // 4, base=2)
        self.register_buffer("scales", scales)

    def angles(self, height: int, width: int, *, down: bool = True, across: bool = True) -> Tensor:
        """Radians in float64, `(h, w, e)`; zero along an axis that is not chosen."""
        scales = self.scales.cpu().double() * math.pi
        # The published positions are float32 values. Positions in float64 would be another model.
        rows = torch.linspace(-1.0, 1.0, height).double()[:, None] * scales * down
        columns = torch.linspace(-1.0, 1.0, width).double()[:, None] * scales * across
        angles = torch.cat(
            (repeat(rows, "h j -> h w j", w=width), repeat(columns, "w j -> h w j", h=height)),
            dim=-1,
        )
        angles = repeat(angles, "h w j -> h w (j two)", two=2)
        return F.pad(angles, (0, self.dim_head - angles.shape[-1]))


class RotaryTables(nn.Module):
    """The rotations of the attention steps. All blocks share them: one constant of the graph.

    Args:
        frame: Frequencies along time.
        image: Frequencies along height and width.
        angles: For each part of a step, a function of `frame` and `image` that gives its angles in
            float64, `(n, e)`, or `(g, n, e)` where they differ from group to group.
        heads: Heads over which a table is repeated.

    The tables are computed in float64 and rounded once. A cast of the model, or new frequencies
    from a checkpoint, computes them again; rounded values are never cast.
    """

    def __init__(
        self,
        frame: FrameRotary,
        image: ImageRotary,
        angles: Mapping[str, Callable[[FrameRotary, ImageRotary], Tensor]],
        heads: int,
    ) -> None:
        super().__init__()
        # In a tuple, PyTorch does not register them: they are submodules of the model already.
        self._sources = (frame, image)
        self._angles = dict(angles)
        self._heads = heads
        for key in angles:
            for part in Rotation._fields:
                self.register_buffer(f"{part}_{key}", torch.empty(0), persistent=False)
        self._tabulate()

    def __getitem__(self, key: str) -> Rotation:
        return Rotation(*(getattr(self, f"{part}_{key}") for part in Rotation._fields))

    def _tabulate(self) -> None:
        for key, make_angles in self._angles.items():
            angles = make_angles(*self._sources)
            angles = repeat(angles, "... n e -> ... n (heads e)", heads=self._heads)
            sin = angles.sin()
            sin[..., 0::2] *= -1
            for part, table in zip(Rotation._fields, (angles.cos(), sin), strict=True):
                name = f"{part}_{key}"
                setattr(self, name, table.to(getattr(self, name)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._tabulate()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # torch's
        super()._load_from_state_dict(*args, **kwargs)
        self._tabulate()


def swap_pairs(weight: Tensor) -> Tensor:
    """Swap the rows of each pair: rows `(x, y)` become `(y, x)`; `(c, ...) -> (c, ...)`."""
    return weight.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def rotate(
    projected: Tensor, x: Tensor, rotation: Rotation, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Rotate `projected = x @ weight.T + bias` by the angles of its tokens, `(..., n, c)`.

    A pair (x, y) becomes `cos (x, y) + sin (-y, x)`. Swapping channels is strided, and slow in
    every runtime. So the rows of the weight are swapped instead: `swap(W x) = swap(W) x`.
    """
    swapped = F.linear(x, swap_pairs(weight), None if bias is None else swap_pairs(bias))
    return projected * rotation.cos + swapped * rotation.sin
