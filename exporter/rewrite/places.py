"""Where most rewrites look: the attention steps of a model, and how a module becomes a variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.block import Block
from model.classifier import VideoClassifier
from model.precision import Rounded
from model.rotary import RotaryTables
from model.spacetime import Step
from model.upstream import UpstreamJointBlock

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Folded(Rounded):
    """The identity, at the path of a module whose weights were folded into another module."""

    def forward(self, x: Tensor) -> Tensor:
        """`(...) -> (...)`."""
        return x


@dataclass(frozen=True)
class Place:
    """One attention step of one block.

    Attributes:
        block: The block.
        step: The step, which lays the tokens out.
        attention: The attention of the step.
        tokens: Tokens of one group in each part of the step, with the class token.
        rotary: The rotary tables, where query and key are rotated.
        one_class_token: Whether all groups share one class token.
        clips: Clips of a run.
    """

    block: Block
    step: Step
    attention: Attention
    tokens: tuple[int, ...]
    rotary: RotaryTables | None
    one_class_token: bool
    clips: int

    @property
    def is_last(self) -> bool:
        """Whether the step is the last one of its block, in which the class token takes part."""
        return self.step is self.block.steps[-1]

    @property
    def dim(self) -> int:
        """Token width d."""
        return self.attention.to_out.out_features


def places(model: VideoClassifier, clips: int = 1) -> Iterator[Place]:
    """Every attention step of every `Block` of a model; none in a family without such blocks."""
    tables = getattr(model, "rotary", None)
    one_class_token = getattr(model, "class_tokens", 1) == 1
    for block in model.modules():
        if isinstance(block, Block):
            rotary = None if isinstance(block, UpstreamJointBlock) else tables
            for step in block.steps:
                attention = block.get_submodule(f"attn_{step.name}.fn")
                assert isinstance(attention, Attention)
                class_token = step is block.steps[-1]
                tokens = tuple(size + class_token for size in _group_sizes(step))
                yield Place(block, step, attention, tokens, rotary, one_class_token, clips)


def become(module: nn.Module, variant: type[ModuleT]) -> ModuleT:
    """Put the methods of `variant` before those of the module's own class, in place.

    The module keeps its identity, its path and its tensors. Several variants may follow each other.

    Returns:
        The module, of the type that it has now.
    """
    module.__class__ = _varied(variant, type(module))
    return cast("ModuleT", module)


@cache
def _varied(variant: type, own: type) -> type:
    """The same class for all modules of one class that become the same variant."""
    return type(f"{variant.__name__}{own.__name__}", (variant, own), {})


def _group_sizes(step: Step) -> list[int]:
    tokens = torch.zeros(1, step.grid.tokens, 1)
    return [part.shape[2] for part in step.group(tokens)]
