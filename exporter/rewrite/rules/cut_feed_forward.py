"""The feed-forward of a few tokens at a time: what is between stays in a cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from exporter.rewrite.pieces import count_pieces
from exporter.rewrite.places import become
from model.block import Block
from model.classifier import VideoClassifier


class PiecewiseBlock(Block):
    """A block whose feed-forward takes the patch tokens piece by piece."""

    piece: int  # tokens

    def feed_forward(self, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens `(b, k, d)` and patch tokens `(b, f h w, d)`, as of a block."""
        parts = [part + self.mlp(part) for part in x.split(self.piece, dim=1)]
        return cls + self.mlp(cls), torch.cat(parts, dim=1)


def cut_feed_forward(model: VideoClassifier, clips: int = 1) -> int:
    """Cut the tokens into pieces before the feed-forward, and join them after it.

        y_i = x_i + F(N(x_i))

    knows one token only. With all tokens at once its hidden activations, many times as wide, go to
    memory and come back for each operation on them. It does not fire where they are small anyway.

    Args:
        model: Changed in place.
        clips: Clips of a run.

    Returns:
        At how many places it fired.
    """
    fired = 0
    for block in model.modules():
        if not isinstance(block, Block) or not _concludes(block):
            continue
        tokens = block.steps[0].grid.tokens
        width = max(one.out_features for one in block.mlp.modules() if isinstance(one, nn.Linear))
        pieces = count_pieces(4 * width * tokens * clips)
        if pieces > 1:
            become(block, PiecewiseBlock)
            assert isinstance(block, PiecewiseBlock)
            block.piece = math.ceil(tokens / pieces)
            fired += 1
    return fired


def _concludes(block: Block) -> bool:
    """Whether the block ends as blocks do, and is not cut yet."""
    kind = type(block)
    plain = kind.forward is Block.forward and kind.conclude is Block.conclude
    return plain and kind.feed_forward is Block.feed_forward
