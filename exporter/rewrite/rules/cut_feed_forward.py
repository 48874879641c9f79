"""The feed-forward of a few tokens at a time: the hidden activations stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exporter.rewrite.pieces import count_pieces
from exporter.rewrite.places import become
from exporter.rewrite.rule import Refusal, Rewrite
from model.block import Block
from model.classifier import VideoClassifier


class PiecewiseBlock(Block):
    """A block whose feed-forward takes the patch tokens piece by piece."""

    piece: int  # tokens

    def feed_forward(self, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens `(b, k, d)` and patch tokens `(b, f h w, d)`, as of a block."""
        parts = [part + self.mlp(part) for part in x.split(self.piece, dim=1)]
        return cls + self.mlp(cls), torch.cat(parts, dim=1)


@dataclass(frozen=True)
class FeedForwardPlace:
    """The feed-forward of one block, for runs of `clips` clips."""

    block: Block
    clips: int

    @property
    def tokens(self) -> int:
        """Patch tokens of a clip."""
        return self.block.steps[0].grid.tokens

    @property
    def pieces(self) -> int:
        """Into how many pieces the tokens are cut, so that a piece fits the cache."""
        maps = (module for module in self.block.mlp.modules() if isinstance(module, nn.Linear))
        width = max(linear.out_features for linear in maps)
        return count_pieces(4 * width * self.tokens * self.clips)


class CutFeedForwardRewrite(Rewrite[FeedForwardPlace]):
    """Cut the tokens into pieces before the feed-forward, and join them after it.

        y_i = x_i + F(N(x_i))

    A token does not depend on the others. The hidden activations are many times as wide as the
    tokens. For all tokens at once they go to memory and come back for each operation.
    """

    name = "cut_feed_forward"
    targets = frozenset({"onnxruntime"})

    def find(self, model: VideoClassifier, clips: int) -> Iterator[FeedForwardPlace]:  # noqa: D102
        blocks = (module for module in model.modules() if isinstance(module, Block))
        return (FeedForwardPlace(block, clips) for block in blocks)

    def fits(self, place: FeedForwardPlace) -> Refusal | None:  # noqa: D102
        kind = type(place.block)
        if kind.feed_forward is not Block.feed_forward:
            return Refusal("the feed-forward is cut already")
        if kind.forward is not Block.forward or kind.combine is not Block.combine:
            return Refusal("the block does not end as other blocks do")
        if place.pieces == 1:
            return Refusal("the hidden activations of all tokens fit the cache")
        return None

    def apply(self, place: FeedForwardPlace) -> None:  # noqa: D102
        piece = math.ceil(place.tokens / place.pieces)
        become(place.block, PiecewiseBlock).piece = piece


cut_feed_forward = CutFeedForwardRewrite()
