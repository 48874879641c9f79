"""The biases of output projections as sums of their own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from exporter.rewrite.places import become
from exporter.rewrite.rule import Refusal, Rewrite
from exporter.rewrite.rules.fold_global_key import FoldedGlobalKey
from model.classifier import VideoClassifier
from model.projections import HeadProjections


class BiasApart(nn.Linear):
    """A linear map of tokens `(..., d)` that adds its bias after the product."""

    def forward(self, input: Tensor) -> Tensor:  # the name of the base class
        """`(..., i) -> (..., o)`."""
        return input @ self.weight.T + self.bias.view(1, 1, -1)


class BiasApartRewrite(Rewrite[HeadProjections]):
    """Add the bias of an attention's output projection after the product, not in it.

        W u + b

    ONNX Runtime computes a product with a bias of one axis as one `Gemm`: one thread fills the
    whole output with the bias, and the product is added to that. A bias with as many axes as the
    tokens is added by all threads in a pass of its own. The numbers are the same.
    """

    name = "bias_apart"
    targets = frozenset({"onnxruntime"})
    precisions = frozenset({"fp32", "int8"})  # below float32 the sum rounds once more

    def find(self, model: VideoClassifier, clips: int) -> Iterator[HeadProjections]:  # noqa: D102
        return (module for module in model.modules() if isinstance(module, HeadProjections))

    def fits(self, place: HeadProjections) -> Refusal | None:  # noqa: D102
        if isinstance(place, FoldedGlobalKey):
            return Refusal("the projection is part of another matrix")
        projection = _output_projection(place)
        if projection.bias is None:
            return Refusal("the projection has no bias")
        if isinstance(projection, BiasApart):
            return Refusal("the bias is a sum of its own already")
        return None

    def apply(self, place: HeadProjections) -> None:  # noqa: D102
        become(_output_projection(place), BiasApart)


def _output_projection(attention: HeadProjections) -> nn.Linear:
    return next(module for module in attention.to_out.modules() if isinstance(module, nn.Linear))


bias_apart = BiasApartRewrite()
