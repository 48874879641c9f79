"""The last block computes the class token alone: nothing reads what it makes of the patches."""

from __future__ import annotations

from torch import Tensor

from exporter.rewrite.places import become, places
from model.attention import HeadProjections
from model.block import Block, merge_class_tokens
from model.classifier import VideoClassifier


class ClassToken(HeadProjections):
    """An attention that is asked for the first token of each group only."""

    def asking(self, tokens: Tensor) -> Tensor:
        """The class token: `(..., n, d) -> (..., 1, d)`."""
        return tokens[..., :1, :]


class ClassTokenBlock(Block):
    """A block that leaves the patch tokens behind after its last step."""

    def conclude(self, cls: Tensor, x: Tensor, attended: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Add `[(b, g, 1, d), ...]` to the class token, then the feed-forward."""
        cls = cls + merge_class_tokens([part[:, :, 0] for part in attended], cls)
        return cls + self.mlp(cls), x


def class_token(model: VideoClassifier) -> int:
    """Let the last step of the last block give the class token only.

        out_cls = sum_n a(q_cls, k_n) v_n

    needs the keys and values of all tokens, but one query, one row of weights and one output; the
    patches' feed-forward was read by nobody. The additive attention still pools all queries.

    It does not fire where the class token stands among the others after the step (the joint block
    of the published package), nor in families that keep it apart already.

    Returns:
        At how many places it fired: one or none.
    """
    found = list(places(model))
    if not found or type(found[-1].block) is not Block:
        return 0
    become(found[-1].attention, ClassToken)
    become(found[-1].block, ClassTokenBlock)
    return 1
