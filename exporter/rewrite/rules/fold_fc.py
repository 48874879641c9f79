"""`fc_t` folded into the output projection before it: two linear maps in a row are one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from exporter.rewrite.places import Folded, Place, places
from exporter.rewrite.rule import Refusal, Rewrite
from model.attention import FastAttention
from model.classifier import VideoClassifier


class FoldFcRewrite(Rewrite[Place]):
    """Fold the projection after an attention step into the attention's output projection.

        F (W_o u + b_o) + b_f = (F W_o) u + (F b_o + b_f)

    Between the two maps the tokens are only laid out in another order, and dropout does nothing
    outside training.
    """

    name = "fold_fc"
    folds_modules = True

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Place]:  # noqa: D102
        return places(model, clips)

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        if not isinstance(place.block._modules.get(_path(place)), nn.Linear):
            return Refusal("no linear map follows the step")
        if isinstance(place.attention, FastAttention):
            return Refusal("the additive attention adds its query between the two maps")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        after, attention = place.block.get_submodule(_path(place)), place.attention
        assert isinstance(after, nn.Linear)
        attention.to_out = _product(after, attention.to_out)
        place.block.add_module(_path(place), Folded())


def _path(place: Place) -> str:
    return f"fc_{place.step.name}"


@torch.no_grad()
def _product(after: nn.Linear, before: nn.Linear) -> nn.Linear:
    """`x -> after(before(x))`, computed in float64 and rounded once."""
    weight = after.weight.double() @ before.weight.double()
    bias = after.weight.double() @ before.bias.double() + after.bias.double()
    folded = nn.Linear(before.in_features, after.out_features).to(before.weight)
    folded.weight.copy_(weight)
    folded.bias.copy_(bias)
    return folded


fold_fc = FoldFcRewrite()
