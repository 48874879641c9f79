"""The last block computes the class token alone: the head reads nothing else."""

from __future__ import annotations

from torch import Tensor

from exporter.rewrite.places import Place, become, places
from exporter.rewrite.rule import Refusal, Rewrite
from model.block import Block, merge_class_tokens
from model.classifier import VideoClassifier
from model.projections import HeadProjections


class ClassToken(HeadProjections):
    """An attention whose only query is the first token of each group."""

    def select_queries(self, tokens: Tensor) -> Tensor:
        """The class token: `(..., n, d) -> (..., 1, d)`."""
        return tokens[..., :1, :]


class ClassTokenBlock(Block):
    """A block whose last step computes the class token only."""

    def combine(self, cls: Tensor, x: Tensor, attended: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Add `[(b, g, 1, d), ...]` to the class token, then the feed-forward."""
        cls = cls + merge_class_tokens([part[:, :, 0] for part in attended], cls)
        return cls + self.mlp(cls), x


class ClassTokenRewrite(Rewrite[Place]):
    """Let the last step of the last block compute the class token only.

        out_cls = sum_n a(q_cls, k_n) v_n

    needs the keys and values of all tokens, but one query, one row of weights and one output. The
    feed-forward of the patch tokens goes too. The additive attention still pools all queries.
    """

    name = "class_token"
    changes = frozenset({"tokens", "hidden_states", "attentions"})  # it computes no patch tokens

    def find(self, model: VideoClassifier, clips: int) -> list[Place]:  # noqa: D102
        return list(places(model, clips))[-1:]

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        if type(place.block) is not Block:
            return Refusal("the block is of another kind: its class token is one of all tokens")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        become(place.attention, ClassToken)
        become(place.block, ClassTokenBlock)


class_token = ClassTokenRewrite()
