"""The schemes: which tokens attend together (Bertasius et al. 2021, arXiv:2102.05095, section 3).

Tokens come as `b (f h w) d`: f frames of h x w patches. A scheme is a list of steps; each step lays
the tokens out as `b g n d`, g groups of n tokens, and a token attends to its own group.

    joint      one group of all tokens          [ f x h x w ]
    divided    first the same patch through     t: h w groups of [ f ]
               time, then all patches of the    s: f groups of [ h x w ]
               same frame

The class token takes part in the last step only: as one more token of every group, its outputs
averaged over the groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from model.rotary import FrameRotary, ImageRotary, RotaryTables


@dataclass(frozen=True)
class Step:
    """One attention step of a block.

    Args:
        name: Suffix of its modules in the state dict, as `attn_t`.
        pattern: Layout of the groups; the axes of a group stand together before `d`.
    """

    name: str
    pattern: str

    def group(self, x: Tensor, grid: Grid) -> Tensor:
        """`(b, f h w, d) -> (b, g, n, d)`."""
        return rearrange(x, f"b (f h w) d -> {self.pattern}", **grid.axes)

    def ungroup(self, x: Tensor, grid: Grid) -> Tensor:
        """`(b, g, n, d) -> (b, f h w, d)`."""
        return rearrange(x, f"{self.pattern} -> b (f h w) d", **grid.axes)

    def angles(self, frame: FrameRotary, image: ImageRotary, grid: Grid) -> Tensor:
        """Rotary angles of the n tokens of a group: time, place, or their sum, `(n, e)`."""
        tokens = self.pattern[self.pattern.rindex("(") : self.pattern.rindex(" d")]
        parts = []
        if "f" in tokens:
            parts.append(rearrange(frame.angles(grid.frames), "f e -> f 1 1 e"))
        if "h" in tokens:
            parts.append(rearrange(image.angles(grid.height, grid.width), "h w e -> 1 h w e"))
        return rearrange(sum(parts[1:], start=parts[0]), "f h w e -> (f h w) e")


@dataclass(frozen=True)
class Grid:
    """How many tokens stand along time, height and width."""

    frames: int
    height: int
    width: int

    @property
    def axes(self) -> dict[str, int]:
        """The sizes by the letters of the patterns."""
        return {"f": self.frames, "h": self.height, "w": self.width}


SCHEMES: Mapping[str, tuple[Step, ...]] = {
    "joint": (Step("s", "b 1 (f h w) d"),),
    "divided": (Step("t", "b (h w) (f) d"), Step("s", "b (f) (h w) d")),
}


def rotary_tables(
    steps: tuple[Step, ...], grid: Grid, frame: FrameRotary, image: ImageRotary, heads: int
) -> RotaryTables:
    """The rotation of every step, with a first row of angle zero where the class token stands."""
    angles = {step.name: partial(_angles, step, grid, step is steps[-1]) for step in steps}
    return RotaryTables(frame, image, angles, heads)


def _angles(
    step: Step, grid: Grid, class_token: bool, frame: FrameRotary, image: ImageRotary
) -> Tensor:
    table = step.angles(frame, image, grid)
    return torch.cat((torch.zeros_like(table[:1]), table)) if class_token else table
