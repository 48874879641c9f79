"""What a model gives beside its logits: features, tokens, hidden states, attentions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from exporter.rewrite.places import become

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.classifier import VideoClassifier


class GivesOutputs(nn.Module):
    """A model whose forward gives the outputs that `output_names` lists."""

    output_names: tuple[str, ...]

    def forward(self, video: Tensor, *more: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute clips `(b, f, c, h, w)`: one tensor, or a tuple in the order of the names."""
        made = self.compute(self.output_names, video, *more)  # type: ignore[operator]  # its class
        first, *others = made.values()
        return (first, *others) if others else first


def give_outputs(model: VideoClassifier, names: Sequence[str]) -> None:
    """Let a model give these outputs, in place; `check_outputs` says whether it has them."""
    if tuple(names) != model.output_names:
        become(model, GivesOutputs)
        model.output_names = tuple(names)
