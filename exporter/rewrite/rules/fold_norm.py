"""The scale and shift of a normalisation, and the bias after it, as one matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from exporter.rewrite.places import become
from exporter.rewrite.rule import Refusal, Rewrite
from model.block import FeedForward, PreNorm
from model.classifier import VideoClassifier
from model.projections import HeadProjections
from model.timesformer_vit import Mlp


class MeanOne(nn.LayerNorm):
    """A normalisation to the mean 1 and the variance 1, without a scale and shift of its own."""


class FoldNormRewrite(Rewrite[PreNorm]):
    """Fold a LayerNorm's scale g and shift s, and the bias b, into the linear map after it.

        W (g * x + s) + b = V (x + 1),    V = W diag(g) (I - 1 1^T / d) + (W s + b) 1^T / d

    for the normalised x of d channels, whose sum is zero. The normalisation adds the constant 1
    instead of its shift, and the matrix turns that constant into the bias. So the biases of the
    widest activations cost no pass over them. On a CPU they do: for a product with a bias ONNX
    Runtime first fills the whole output with the bias, on one thread.

    Where there is no bias at all, the normalisation adds nothing. An x that is much smaller than 1,
    since the tokens vary less than epsilon, would lose digits beside the constant for no use.
    """

    name = "fold_norm"
    targets = frozenset({"onnxruntime"})
    precisions = frozenset({"fp32", "int8"})  # below float32 the folded rows round once more

    def find(self, model: VideoClassifier, clips: int) -> Iterator[PreNorm]:  # noqa: D102
        return (module for module in model.modules() if isinstance(module, PreNorm))

    def fits(self, place: PreNorm) -> Refusal | None:  # noqa: D102
        if isinstance(place.norm, MeanOne):
            return Refusal("it is applied already")
        projection = _reader(place.fn)
        if projection is None:
            return Refusal("no linear map reads the normalised tokens directly")
        plain = bool((place.norm.weight == 1).all()) and not place.norm.bias.any()
        if plain and projection.bias is None and not _adds_bias(place.fn):
            return Refusal("there is no scale, shift or bias")
        return None

    @torch.no_grad()
    def apply(self, place: PreNorm) -> None:  # noqa: D102
        norm, projection = place.norm, _reader(place.fn)
        assert projection is not None
        weight = projection.weight.double()
        bias = weight @ norm.bias.double()
        if projection.bias is not None:
            bias = bias + projection.bias.double()
        weight = weight * norm.weight.double()
        if bias.any() or _adds_bias(place.fn):
            folded = with_bias(weight - weight.mean(1, keepdim=True), bias)
            projection.weight.copy_(round_rows(folded, projection.weight.dtype))
            become(norm, MeanOne)
            norm.bias.fill_(1.0)
        else:
            projection.weight.copy_(weight)
            norm.bias.zero_()
        projection.register_parameter("bias", None)
        norm.weight.fill_(1.0)


def with_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """The matrix that gives `W x + b` for tokens of mean 1: `(o, d), (o) -> (o, d)`."""
    return weight + bias.unsqueeze(1) / weight.shape[1]


def round_rows(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Round each row so that its sum stays: `(o, d)` float64 to `(o, d)` of `dtype`.

    Tokens have the mean 1, so each token gets the sum of a row as its bias. Were the d elements
    rounded one by one, their sum would be off by about sqrt(d) roundings, for every token in the
    same direction. So each element takes over what the elements before it lost.
    """
    if weight.dtype == dtype:
        return weight
    rounded, lost = torch.empty_like(weight, dtype=dtype), torch.zeros_like(weight[:, 0])
    for i in range(weight.shape[1]):
        wanted = weight[:, i] + lost
        rounded[:, i] = wanted
        lost = wanted - rounded[:, i]
    return rounded


def _adds_bias(fn: nn.Module) -> bool:
    """Whether an attention adds a bias to its output, which `frame_weights` folds too."""
    out = fn.to_out if isinstance(fn, HeadProjections) else None
    return isinstance(out, nn.Linear) and out.bias is not None and bool(out.bias.any())


def _reader(fn: nn.Module) -> nn.Linear | None:
    """The linear map that all normalised tokens go through first.

    None where tokens of several frames are mixed in between (`shift_tokens`).
    """
    if isinstance(fn, HeadProjections):
        return fn.to_qkv
    first = fn.net[0] if isinstance(fn, FeedForward) else getattr(fn, "fc1", None)
    return first if isinstance(fn, FeedForward | Mlp) and isinstance(first, nn.Linear) else None


fold_norm = FoldNormRewrite()
