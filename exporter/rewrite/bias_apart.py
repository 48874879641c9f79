"""The wide biases of the feed-forward as sums of their own."""

from __future__ import annotations

from torch import Tensor

from exporter.rewrite.places import become
from model.block import FeedForward
from model.classifier import VideoClassifier


class BiasApart(FeedForward):
    """A feed-forward whose first biases have the three axes of tokens."""

    def project(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """`(b, n, d) -> (b, n, 4d)`."""
        return x @ weight.T + bias.view(1, 1, -1)


def bias_apart(model: VideoClassifier) -> int:
    """Add the biases of the first feed-forward product after it, not in it.

        x W + b

    of a bias with one axis becomes one `Gemm` in ONNX Runtime, which fills its whole output with
    the bias, on one thread, and adds the product to that. A bias with as many axes as the tokens is
    added by a pass of all threads instead. The numbers are the same.

    Returns:
        At how many places it fired.
    """
    fired = 0
    for module in model.modules():
        if isinstance(module, FeedForward) and not isinstance(module, BiasApart):
            become(module, BiasApart)
            fired += 1
    return fired
