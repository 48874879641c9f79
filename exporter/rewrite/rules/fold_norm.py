"""What a normalisation adds and multiplies, and the bias after it, as one matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporter.rewrite.places import become
from model.attention import HeadProjections
from model.block import FeedForward, PreNorm
from model.classifier import VideoClassifier
from model.timesformer_vit import Mlp


class MeanOne(nn.LayerNorm):
    """A normalisation to the mean 1 and the variance 1: all that it learned stands elsewhere."""


def fold_norm(model: VideoClassifier) -> int:
    """Fold a LayerNorm's scale g and shift s, and the bias b, into the linear map after it.

        W (g * x + s) + b = V (x + 1),    V = W diag(g) (I - 1 1^T / d) + (W s + b) 1^T / d

    for the normalised x of d channels, whose sum is zero: the constant that the normalisation adds
    instead of its shift is what the matrix turns into the bias. So the biases of the widest
    activations cost no pass over them, which on a CPU they do: as part of a product in ONNX
    Runtime, one thread fills the whole output with the bias first.

    It fires on attentions and feed-forwards that read a norm directly, and not where tokens of
    several frames are mixed in between (`shift_tokens`).

    Returns:
        At how many places it fired.
    """
    fired = 0
    for module in model.modules():
        if isinstance(module, PreNorm) and not isinstance(module.norm, MeanOne):
            projection = _reader(module.fn)
            if projection is not None:
                _fold(module.norm, projection)
                fired += 1
    return fired


def with_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """The matrix that gives `W x + b` of tokens of mean 1: `(o, d), (o) -> (o, d)`."""
    return weight + bias.unsqueeze(1) / weight.shape[1]


def round_rows(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Round each row so that its sum stays: `(o, d)` float64 to `(o, d)` of `dtype`.

    Tokens have the mean 1, so that each gets the sum of a row as its bias. Rounded one by one, d
    elements are off by sqrt(d) roundings together, for every token in the same direction; so each
    element takes on what was lost of those before it.
    """
    if weight.dtype == dtype:
        return weight
    rounded, lost = torch.empty_like(weight, dtype=dtype), torch.zeros_like(weight[:, 0])
    for i in range(weight.shape[1]):
        wanted = weight[:, i] + lost
        rounded[:, i] = wanted
        lost = wanted - rounded[:, i]
    return rounded


def _reader(fn: nn.Module) -> nn.Linear | None:
    """The linear map that all normalised tokens go through first."""
    if isinstance(fn, HeadProjections):
        return fn.to_qkv
    first = fn.net[0] if isinstance(fn, FeedForward) else getattr(fn, "fc1", None)
    return first if isinstance(fn, FeedForward | Mlp) and isinstance(first, nn.Linear) else None


@torch.no_grad()
def _fold(norm: nn.LayerNorm, projection: nn.Linear) -> None:
    weight = projection.weight.double()
    bias = weight @ norm.bias.double()
    if projection.bias is not None:
        bias = bias + projection.bias.double()
    weight = weight * norm.weight.double()
    folded = with_bias(weight - weight.mean(1, keepdim=True), bias)
    projection.weight.copy_(round_rows(folded, projection.weight.dtype))
    projection.register_parameter("bias", None)
    become(norm, MeanOne)
    norm.weight.fill_(1.0)
    norm.bias.fill_(1.0)
