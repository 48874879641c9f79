"""The schemes: which tokens attend together (Bertasius et al. 2021, arXiv:2102.05095, section 3).

Tokens come as `b (f h w) d`: f frames of h x w patches. A scheme is a list of steps. Each step lays
the tokens out in groups, `b g n d`, and a token attends to its own group. The drawing shows two
frames of 4 x 4 patches; `o` is the group of the token `Q`:

    space (S)                joint (ST)               divided (T+S)
    s: one frame             s: all tokens            t: one patch through time, then s: one frame
    o o o o   . . . .        o o o o   o o o o        . . . .   . . . .     o o o o   . . . .
    o Q o o   . . . .        o Q o o   o o o o        . Q . .   . o . .     o Q o o   . . . .
    o o o o   . . . .        o o o o   o o o o        . . . .   . . . .     o o o o   . . . .
    o o o o   . . . .        o o o o   o o o o        . . . .   . . . .     o o o o   . . . .

    local-global (L+G)                                axial (T+W+H)
    l: a quarter of the      g: every second token    t: as in divided, then w: one row of a frame,
    image, all frames        in time and space        then h: one column of a frame
    o o . .   o o . .        . . . .   . . . .        . . . .   . . . .     . o . .   . . . .
    o Q . .   o o . .        . Q . o   . . . .        o Q o o   . . . .     . Q . .   . . . .
    . . . .   . . . .        . . . .   . . . .        . . . .   . . . .     . o . .   . . . .
    . . . .   . . . .        . o . o   . . . .        . . . .   . . . .     . o . .   . . . .

The class token takes part in the last step only, as one more token of every group. Its outputs are
averaged over the groups. In `space` each frame has a class token of its own.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from model.rotary import FrameRotary, ImageRotary, RotaryTables


@dataclass(frozen=True)
class Grid:
    """The number of tokens along time, height and width."""

    frames: int
    height: int
    width: int

    @property
    def axes(self) -> dict[str, int]:
        """The sizes by the letters of the einops patterns."""
        return {"f": self.frames, "h": self.height, "w": self.width}

    @property
    def tokens(self) -> int:
        """The number of all tokens."""
        return self.frames * self.height * self.width


class Step(nn.Module, ABC):
    """One attention step of a block: lays tokens out in groups, and back.

    One tensor holds all groups of one size. There are several tensors where a grid does not divide.

    Args:
        name: Suffix of its modules in the state dict, as `attn_t`.
        grid: The tokens.
    """

    def __init__(self, name: str, grid: Grid) -> None:
        super().__init__()
        self.name, self.grid = name, grid

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the parts, as in the rotary tables."""
        return (self.name,)

    @abstractmethod
    def group(self, x: Tensor) -> list[Tensor]:
        """`(b, f h w, d) -> [(b, g, n, d), ...]`."""

    @abstractmethod
    def ungroup(self, parts: list[Tensor]) -> Tensor:
        """`[(b, g, n, d), ...] -> (b, f h w, d)`."""

    @abstractmethod
    def angles(self, frame: FrameRotary, image: ImageRotary) -> list[Tensor]:
        """Rotary angles of the tokens of each part, `(n, e)` or `(g, n, e)`."""


class Rearranged(Step):
    """Groups that are whole axes of the grid.

    Args:
        name: As in `Step`.
        groups: Axes that tell the groups apart, as `"h w"`; empty for one group of all tokens.
        tokens: Axes of the tokens of a group, as `"f"`.
        grid: The tokens.
    """

    def __init__(self, name: str, grid: Grid, *, groups: str, tokens: str) -> None:
        super().__init__(name, grid)
        self.group_axes, self.token_axes = groups.split(), tokens.split()
        self._layout = f"b ({groups}) ({tokens}) d"

    @property
    def is_one_patch_through_time(self) -> bool:
        """Whether a group is the same patch of all frames."""
        return self.token_axes == ["f"] and self.group_axes == ["h", "w"]

    def group(self, x: Tensor) -> list[Tensor]:  # noqa: D102
        return [rearrange(x, f"b (f h w) d -> {self._layout}", **self.grid.axes)]

    def ungroup(self, parts: list[Tensor]) -> Tensor:  # noqa: D102
        return rearrange(parts[0], f"{self._layout} -> b (f h w) d", **self.grid.axes)

    def angles(self, frame: FrameRotary, image: ImageRotary) -> list[Tensor]:
        """Angles along the axes of a group; its tokens do not differ along the other axes."""
        axes = self.token_axes
        table = space_time_angles(
            frame, image, self.grid, time="f" in axes, down="h" in axes, across="w" in axes
        )
        frames, rows, columns = (
            size if axis in axes else 1 for axis, size in self.grid.axes.items()
        )
        return [table[:frames, :rows, :columns].flatten(0, 2)]


class Gathered(Step):
    """Groups that are lists of tokens.

    Args:
        name: As in `Step`.
        groups: The tokens of each group, by their index in `(f h w)`.
        grid: The tokens.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, name: str, groups: list[Tensor], grid: Grid) -> None:
        super().__init__(name, grid)
        by_size = sorted((group for group in groups if len(group)), key=len)
        self.parts = [  # (groups, tokens of each)
            (len(list(same)), size) for size, same in itertools.groupby(map(len, by_size))
        ]
        order = torch.cat(by_size)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(), persistent=False)

    @property
    def keys(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(f"{self.name}{part}" for part in range(len(self.parts)))

    def group(self, x: Tensor) -> list[Tensor]:  # noqa: D102
        return self._split(x.index_select(1, self.order))

    def ungroup(self, parts: list[Tensor]) -> Tensor:  # noqa: D102
        flat = [part.flatten(1, 2) for part in parts]
        x = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
        return x.index_select(1, self.inverse)

    def angles(self, frame: FrameRotary, image: ImageRotary) -> list[Tensor]:  # noqa: D102
        table = space_time_angles(frame, image, self.grid).flatten(0, 2)[self.order.cpu()]
        return [part[0] for part in self._split(table.unsqueeze(0))]

    def _split(self, x: Tensor) -> list[Tensor]:
        parts, start = [], 0
        for count, size in self.parts:
            part = x[:, start : start + count * size]
            parts.append(part.unflatten(1, (count, size)))
            start += count * size
        return parts


def space_time_angles(
    frame: FrameRotary,
    image: ImageRotary,
    grid: Grid,
    *,
    time: bool = True,
    down: bool = True,
    across: bool = True,
) -> Tensor:
    """Angles of every token, `(f, h, w, e)`: the sum of the angles along the chosen axes.

    The rotation by a sum of angles depends on the distances along each axis.
    """
    angles = image.angles(grid.height, grid.width, down=down, across=across).unsqueeze(0)
    if time:
        return angles + rearrange(frame.angles(grid.frames), "f e -> f 1 1 e")
    return angles.expand(grid.frames, -1, -1, -1)


def halves(size: int) -> list[Tensor]:
    """The first and the second half of an axis; the first is the longer one."""
    return [half for half in torch.arange(size).split((size + 1) // 2) if len(half)]


def parities(size: int) -> list[Tensor]:
    """The even and the odd indices of an axis."""
    return [places for start in (0, 1) if len(places := torch.arange(start, size, 2))]


def _products(
    frames: list[Tensor], rows: list[Tensor], columns: list[Tensor], grid: Grid
) -> list[Tensor]:
    """One group for each choice of indices along time, height and width."""
    places = torch.arange(grid.tokens).view(grid.frames, grid.height, grid.width)
    return [
        places[f][:, h][:, :, w].flatten() for f, h, w in itertools.product(frames, rows, columns)
    ]


def _space(grid: Grid) -> tuple[Step, ...]:
    return (Rearranged("s", grid, groups="f", tokens="h w"),)


def _joint(grid: Grid) -> tuple[Step, ...]:
    return (Rearranged("s", grid, groups="", tokens="f h w"),)


def _divided(grid: Grid) -> tuple[Step, ...]:
    return (
        Rearranged("t", grid, groups="h w", tokens="f"),
        Rearranged("s", grid, groups="f", tokens="h w"),
    )


def _local_global(grid: Grid) -> tuple[Step, ...]:
    everywhen = [torch.arange(grid.frames)]
    local = _products(everywhen, halves(grid.height), halves(grid.width), grid)
    sparse = _products(parities(grid.frames), parities(grid.height), parities(grid.width), grid)
    return Gathered("l", local, grid), Gathered("g", sparse, grid)


def _axial(grid: Grid) -> tuple[Step, ...]:
    return (
        Rearranged("t", grid, groups="h w", tokens="f"),
        Rearranged("w", grid, groups="f h", tokens="w"),
        Rearranged("h", grid, groups="f w", tokens="h"),
    )


SCHEMES: Mapping[str, Callable[[Grid], tuple[Step, ...]]] = {
    "space": _space,
    "joint": _joint,
    "divided": _divided,
    "local-global": _local_global,
    "axial": _axial,
}


def rotary_tables(
    steps: tuple[Step, ...], frame: FrameRotary, image: ImageRotary, heads: int
) -> RotaryTables:
    """The rotation of every part; the class token of the last step gets a first row of angle 0."""
    angles = {
        key: partial(_part_angles, step, part, step is steps[-1])
        for step in steps
        for part, key in enumerate(step.keys)
    }
    return RotaryTables(frame, image, angles, heads)


def _part_angles(
    step: Step, part: int, class_token: bool, frame: FrameRotary, image: ImageRotary
) -> Tensor:
    table = step.angles(frame, image)[part]
    if not class_token:
        return table
    return torch.cat((torch.zeros_like(table[..., :1, :]), table), dim=-2)
