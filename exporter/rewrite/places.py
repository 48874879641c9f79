"""Where rewrites look: the attentions of a model's blocks, and how a module becomes a variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.block import Block
from model.classifier import VideoClassifier
from model.precision import Rounded
from model.spacetime import Step
from model.upstream import UpstreamJointBlock


class Folded(Rounded):
    """Stands where a module was that has become a part of another one."""

    def forward(self, x: Tensor) -> Tensor:
        """The identity."""
        return x


@dataclass(frozen=True)
class Place:
    """One attention step of one block.

    Attributes:
        block: The block.
        step: The step, which lays the tokens out.
        attention: What attends.
        tokens: Tokens of one group in each part of the step, the class token among them.
        rotated: Whether query and key are rotated.
    """

    block: Block
    step: Step
    attention: Attention
    tokens: tuple[int, ...]
    rotated: bool


def places(model: VideoClassifier) -> Iterator[Place]:
    """Every step of every `Block` of a model; none for families without."""
    tables = getattr(model, "rotary", None) is not None
    for block in model.modules():
        if isinstance(block, Block):
            rotated = tables and not isinstance(block, UpstreamJointBlock)
            for step in block.steps:
                attention = block.get_submodule(f"attn_{step.name}.fn")
                assert isinstance(attention, Attention)
                class_token = step is block.steps[-1]
                tokens = tuple(size + class_token for size in _group_sizes(step))
                yield Place(block, step, attention, tokens, rotated)


def become(module: nn.Module, variant: type[nn.Module]) -> None:
    """Put the methods of `variant` before those of the module's own class, in place.

    The module keeps its identity, its path and its tensors; variants may follow one another.
    """
    module.__class__ = _varied(variant, type(module))


@cache
def _varied(variant: type, own: type) -> type:
    """One class for all modules that become the same."""
    return type(f"{variant.__name__}{own.__name__}", (variant, own), {})


def _group_sizes(step: Step) -> list[int]:
    tokens = torch.zeros(1, step.grid.tokens, 1)
    return [part.shape[2] for part in step.group(tokens)]
