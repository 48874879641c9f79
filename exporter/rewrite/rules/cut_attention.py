"""Attention on a few groups at a time: the attention weights stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn

from exporter.rewrite.pieces import count_pieces
from exporter.rewrite.places import Place, become, places
from exporter.rewrite.rule import Refusal, Rewrite
from exporter.rewrite.rules.class_token import ClassToken
from exporter.rewrite.rules.frame_weights import FrameBlock, FrameWeights
from model.attention import PerformerAttention, RegularAttention
from model.classifier import VideoClassifier
from model.rotary import FrameRotary, ImageRotary
from model.spacetime import Rearranged, Step
from model.upstream import UpstreamPerformerAttention

SMALL_SHARE = 100  # below this share matrix products take the time: the base model gained nothing


class Pieces(Step):
    """A step whose groups come a few at a time.

    Args:
        step: The step that lays the tokens out.
        groups: The number of groups in one piece.
    """

    def __init__(self, step: Rearranged, groups: int) -> None:
        super().__init__(step.name, step.grid)
        self.whole, self.groups = step, groups

    @property
    def keys(self) -> tuple[str, ...]:
        """One rotation serves all pieces: groups of whole axes have the same angles."""
        return self.whole.keys * len(self.group(torch.zeros(1, self.grid.tokens, 1)))

    def group(self, x: Tensor) -> list[Tensor]:  # noqa: D102
        return list(self.whole.group(x)[0].split(self.groups, dim=1))

    def ungroup(self, parts: list[Tensor]) -> Tensor:  # noqa: D102
        return self.whole.ungroup([torch.cat(parts, dim=1)])

    def angles(self, frame: FrameRotary, image: ImageRotary) -> list[Tensor]:  # noqa: D102
        return self.whole.angles(frame, image)


class PiecewiseFrameBlock(FrameBlock):
    """A block whose step through time takes the patches of all frames piece by piece."""

    patches: int  # of a frame, in one piece

    def attend_frames(self, attention: nn.Module, frames: Tensor) -> Tensor:
        """`(b, f, g, d) -> (b, f, g, d)`."""
        parts = [attention(part) for part in frames.split(self.patches, dim=2)]
        return torch.cat(parts, dim=2)


class CutAttentionRewrite(Rewrite[Place]):
    """Cut the groups of an attention step into pieces, and join the outputs.

        out = [A(x_1), A(x_2), ...]    for groups x = [x_1, x_2, ...]

    Groups do not depend on one another. The attention weights (softmax) or the weights of the
    random features (FAVOR+) are many times as large as the tokens. For all groups at once they go
    to memory and come back for each operation.
    """

    name = "cut_attention"
    changes = frozenset({"attentions"})  # their groups come a few at a time
    targets = frozenset({"onnxruntime"})

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Place]:  # noqa: D102
        return places(model, clips)

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        if refusal := _check_layout(place):
            return refusal
        weights = _weights_of_token(place)
        if weights == 0:
            return Refusal("the mechanism has few attention weights")
        if SMALL_SHARE * weights < place.dim**2:
            return Refusal("matrix products take the time: attention weights are few beside d x d")
        if _count_pieces(place) == 1:
            return Refusal("the attention weights of all groups fit the cache")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        block, groups = place.block, math.ceil(_count_groups(place) / _count_pieces(place))
        if isinstance(place.attention, FrameWeights):
            become(block, PiecewiseFrameBlock).patches = groups
        elif isinstance(place.step, Rearranged):
            cut = _cut(place.step, groups)
            block.steps = tuple(cut if step is place.step else step for step in block.steps)


@lru_cache(maxsize=8)
def _cut(step: Rearranged, groups: int) -> Pieces:
    """One object for all blocks that share a step, as the step itself is one."""
    return Pieces(step, groups)


def _check_layout(place: Place) -> Refusal | None:
    if isinstance(place.attention, FrameWeights):
        cut = isinstance(place.block, PiecewiseFrameBlock)
        return Refusal("the step is cut already") if cut else None
    if isinstance(place.step, Pieces):
        return Refusal("the step is cut already")
    if not isinstance(place.step, Rearranged):
        return Refusal("the groups differ in their rotation")
    if place.is_last and not place.one_class_token:
        return Refusal("each group has a class token of its own")
    return None


def _count_groups(place: Place) -> int:
    patches = min(place.tokens) - place.is_last  # of a group, without the class token
    return place.step.grid.tokens // patches


def _count_pieces(place: Place) -> int:
    groups = _count_groups(place)
    weights = groups * min(place.tokens) * _weights_of_token(place)
    return min(count_pieces(4 * place.clips * weights), groups)


def _weights_of_token(place: Place) -> int:
    """The attention weights of one token of a group, of all heads."""
    attention = place.attention
    if isinstance(attention, UpstreamPerformerAttention):
        return 0
    if isinstance(attention, PerformerAttention):
        return attention.heads * len(attention.projection_matrix)
    if isinstance(attention, RegularAttention) and not isinstance(attention, ClassToken):
        return attention.heads * min(place.tokens)
    return 0


cut_attention = CutAttentionRewrite()
