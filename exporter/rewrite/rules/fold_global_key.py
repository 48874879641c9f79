"""Additive attention on many tokens: value, global key, output and query as one matrix."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from exporter.rewrite.places import Place, become, places
from exporter.rewrite.rule import Refusal, Rewrite
from exporter.rewrite.rules.class_token import ClassToken
from model.attention import FastAttention
from model.classifier import VideoClassifier
from model.precision import as_type_of
from model.upstream import UpstreamFastAttention


class FoldedGlobalKey(FastAttention):
    """Additive attention that multiplies its matrices before its tokens."""

    def combine(self, x: Tensor, q: Tensor, global_key: Tensor) -> Tensor:
        """`(..., n, d), (..., n, c), (..., 1, c) -> (..., n, d)`; q is computed again."""
        query, _, value = self.split_weights()
        global_key = as_type_of(x, global_key)
        weight = (global_key * value.weight.T) @ self.to_out.weight.T + query.weight.T  # ... d d
        bias = self.to_out.bias
        if query.bias is not None and value.bias is not None:
            bias = (global_key * value.bias) @ self.to_out.weight.T + bias + query.bias
        return x @ weight + bias


class FoldGlobalKeyRewrite(Rewrite[Place]):
    """Fold the global key into the projections around it where a group has more tokens than d.

        W_o (k * W_v x_i) + W_q x_i = (W_o diag(k) W_v + W_q) x_i

    The matrix in brackets is the same for all n tokens of a group. That costs n products of tokens
    and d products to make the matrix, instead of 2 n.
    """

    name = "fold_global_key"
    targets = frozenset({"onnxruntime"})  # TensorRT multiplies in kernels that it needs anyway
    # Its matrices are made at run time, and runtimes have no integer product of such matrices.
    precisions = frozenset({"fp32", "fp16", "bf16"})

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Place]:  # noqa: D102
        return places(model, clips)

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        attention = place.attention
        if not isinstance(attention, FastAttention):
            return Refusal("the mechanism has no global key")
        if isinstance(attention, UpstreamFastAttention):
            return Refusal("the global key of the published package differs from token to token")
        if isinstance(attention, ClassToken):
            return Refusal("the step has one query only")
        if isinstance(attention, FoldedGlobalKey):
            return Refusal("it is applied already")
        if min(place.tokens) <= place.dim:
            return Refusal("a group has at most as many tokens as a token has channels")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        become(place.attention, FoldedGlobalKey)


fold_global_key = FoldGlobalKeyRewrite()
