"""Attention on a few groups at a time: the weights of their tokens stay in a cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from exporter.rewrite.pieces import count_pieces
from exporter.rewrite.places import Place, become, places
from exporter.rewrite.rules.class_token import ClassToken
from exporter.rewrite.rules.frame_weights import FrameBlock, FrameWeights
from model.attention import PerformerAttention, RegularAttention
from model.classifier import VideoClassifier
from model.rotary import FrameRotary, ImageRotary
from model.spacetime import Rearranged, Step
from model.upstream import UpstreamPerformerAttention

SMALL_SHARE = 100  # below it matrix products take the time: the base model gained nothing


class Pieces(Step):
    """A step whose groups come a few at a time.

    Args:
        step: What lays the tokens out.
        groups: How many come together.
    """

    def __init__(self, step: Rearranged, groups: int) -> None:
        super().__init__(step.name, step.grid)
        self.whole, self.groups = step, groups

    @property
    def keys(self) -> tuple[str, ...]:
        """One rotation for all: groups of whole axes do not differ in it."""
        return self.whole.keys * len(self.group(torch.zeros(1, self.grid.tokens, 1)))

    def group(self, x: Tensor) -> list[Tensor]:  # noqa: D102
        (part,) = self.whole.group(x)
        return list(part.split(self.groups, dim=1))

    def ungroup(self, parts: list[Tensor]) -> Tensor:  # noqa: D102
        return self.whole.ungroup([torch.cat(parts, dim=1)])

    def angles(self, frame: FrameRotary, image: ImageRotary) -> list[Tensor]:  # noqa: D102
        return self.whole.angles(frame, image)


class PiecewiseFrameBlock(FrameBlock):
    """A block whose step through time takes the patches of all frames piece by piece."""

    patches: int  # of a frame

    def attend_frames(self, attention: nn.Module, frames: Tensor) -> Tensor:
        """`(b, f, g, d) -> (b, f, g, d)`."""
        parts = [attention(part) for part in frames.split(self.patches, dim=2)]
        return torch.cat(parts, dim=2)


def cut_attention(model: VideoClassifier, clips: int = 1) -> int:
    """Cut the groups of an attention step into pieces, and join what they give.

    Groups know nothing of one another. With all of them at once, the weights of tokens for tokens
    (softmax) or for random features (FAVOR+), many times as large as the tokens, go to memory and
    come back for each operation on them. It does not fire where they are small anyway, or less
    than 1 / SMALL_SHARE of the d x d matrices that a token goes through; on the additive attention,
    whose weights are few; nor on groups that differ in their rotation or have a class token each.

    Args:
        model: Changed in place.
        clips: Clips of a run.

    Returns:
        At how many places it fired.
    """
    fired = 0
    cut_step = cache(Pieces)  # one object serves all blocks
    for place in list(places(model)):
        if _fits(place, bool(model.class_tokens == 1)):
            tokens, weights = min(place.tokens), _weights_of_token(place)
            groups = place.step.grid.tokens // (tokens - (place.step is place.block.steps[-1]))
            pieces = min(count_pieces(4 * clips * groups * tokens * weights), groups)
            if pieces > 1 and SMALL_SHARE * weights >= place.attention.to_out.out_features**2:
                _cut(place, cut_step, math.ceil(groups / pieces))
                fired += 1
    return fired


def _fits(place: Place, one_class_token: bool) -> bool:
    block, step = place.block, place.step
    if isinstance(place.attention, FrameWeights):
        return not isinstance(block, PiecewiseFrameBlock)
    return isinstance(step, Rearranged) and (one_class_token or step is not block.steps[-1])


def _cut(place: Place, cut_step: Callable[[Rearranged, int], Pieces], groups: int) -> None:
    block = place.block
    if isinstance(place.attention, FrameWeights):
        become(block, PiecewiseFrameBlock)
        assert isinstance(block, PiecewiseFrameBlock)
        block.patches = groups
    else:
        assert isinstance(place.step, Rearranged)
        cut = cut_step(place.step, groups)
        block.steps = tuple(cut if step is place.step else step for step in block.steps)


def _weights_of_token(place: Place) -> int:
    """Attention weights of one token of a group, those of all heads."""
    attention = place.attention
    if isinstance(attention, UpstreamPerformerAttention):
        return 0
    if isinstance(attention, PerformerAttention):
        return attention.heads * len(attention.projection_matrix)
    if isinstance(attention, RegularAttention) and not isinstance(attention, ClassToken):
        return attention.heads * min(place.tokens)
    return 0
