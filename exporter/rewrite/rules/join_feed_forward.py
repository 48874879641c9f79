"""One feed-forward for the class tokens and the patch tokens of a block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from exporter.rewrite.places import become
from exporter.rewrite.rule import PRECISIONS, Refusal, Rewrite
from model.block import Block
from model.classifier import VideoClassifier


class JoinedBlock(Block):
    """A block whose feed-forward takes class tokens and patch tokens in one tensor."""

    def feed_forward(self, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens `(b, k, d)` and patch tokens `(b, f h w, d)`, as of a block."""
        tokens = torch.cat((cls, x), dim=1)  # b k+fhw d
        tokens = tokens + self.mlp(tokens)
        return tokens[:, : cls.shape[1]], tokens[:, cls.shape[1] :]


class JoinFeedForwardRewrite(Rewrite[Block]):
    """Take class tokens and patch tokens through the feed-forward together.

        [c, x] + F(N([c, x])) = [c + F(N(c)), x + F(N(x))]

    A token does not depend on the others. The class token alone is one row: too little work for a
    GPU, and five kernels in each block. TensorRT joins and splits the tokens inside the kernels
    that come before and after. On a CPU the two copies cost more than the row does.
    """

    name = "join_feed_forward"
    targets = frozenset({"tensorrt"})
    # In int8 the class token would share the scale of the patch tokens: five times the error.
    precisions = PRECISIONS - {"int8"}

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Block]:  # noqa: D102
        return (module for module in model.modules() if isinstance(module, Block))

    def fits(self, place: Block) -> Refusal | None:  # noqa: D102
        kind = type(place)
        if isinstance(place, JoinedBlock):
            return Refusal("it is applied already")
        if kind.feed_forward is not Block.feed_forward:
            return Refusal("the feed-forward is cut into pieces")
        if kind.forward is not Block.forward or kind.combine is not Block.combine:
            return Refusal("the block does not end as other blocks do")
        return None

    def apply(self, place: Block) -> None:  # noqa: D102
        become(place, JoinedBlock)


join_feed_forward = JoinFeedForwardRewrite()
