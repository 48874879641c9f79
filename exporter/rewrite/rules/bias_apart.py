"""The biases of output projections as sums of their own."""

from __future__ import annotations

from torch import Tensor, nn

from exporter.rewrite.places import become
from exporter.rewrite.rules.fold_global_key import FoldedGlobalKey
from model.attention import HeadProjections
from model.classifier import VideoClassifier


class BiasApart(nn.Linear):
    """A linear map of tokens `(..., d)` that adds its bias after the product."""

    def forward(self, input: Tensor) -> Tensor:  # the name of the base class
        """`(..., i) -> (..., o)`."""
        return input @ self.weight.T + self.bias.view(1, 1, -1)


def bias_apart(model: VideoClassifier) -> int:
    """Add the biases of what attention gives after the product, not in it.

        W u + b

    of a bias with one axis becomes one `Gemm` in ONNX Runtime, which fills its whole output with
    the bias, on one thread, and adds the product to that. A bias with as many axes as the tokens is
    added by a pass of all threads instead. The numbers are the same. It does not fire where the
    projection is part of another matrix.

    Returns:
        At how many places it fired.
    """
    fired = 0
    for module in model.modules():
        if isinstance(module, HeadProjections) and not isinstance(module, FoldedGlobalKey):
            projection = next(one for one in module.to_out.modules() if isinstance(one, nn.Linear))
            if projection.bias is not None and not isinstance(projection, BiasApart):
                become(projection, BiasApart)
                fired += 1
    return fired
