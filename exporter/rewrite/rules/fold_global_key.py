"""Additive attention on many tokens: value, global key, output and query as one matrix."""

from __future__ import annotations

from torch import Tensor

from exporter.rewrite.places import become, places
from exporter.rewrite.rules.class_token import ClassToken
from model.attention import FastAttention
from model.classifier import VideoClassifier
from model.precision import as_type_of
from model.upstream import UpstreamFastAttention


class FoldedGlobalKey(FastAttention):
    """Additive attention that multiplies its matrices before its tokens."""

    def give(self, x: Tensor, q: Tensor, global_key: Tensor) -> Tensor:
        """`(..., n, d), (..., n, c), (..., 1, c) -> (..., n, d)`; q is made anew."""
        query, _, value = self.split_weights()
        global_key = as_type_of(x, global_key)
        weight = (global_key * value.weight.T) @ self.to_out.weight.T + query.weight.T  # ... d d
        bias = self.to_out.bias
        if query.bias is not None and value.bias is not None:
            bias = (global_key * value.bias) @ self.to_out.weight.T + bias + query.bias
        return x @ weight + bias


def fold_global_key(model: VideoClassifier) -> int:
    """Fold the global key into the projections around it where a group has more tokens than d.

        W_o (k * W_v x_i) + W_q x_i = (W_o diag(k) W_v + W_q) x_i

    The matrix in brackets is one for all n tokens of a group: n products by it, and d to make it,
    instead of 2 n. It does not fire on groups of at most d tokens, nor where the global key differs
    from token to token (the published package), nor where one token is asked for.

    Returns:
        At how many places it fired.
    """
    fired = 0
    for place in places(model):
        attention = place.attention
        if (
            isinstance(attention, FastAttention)
            and not isinstance(attention, UpstreamFastAttention | ClassToken | FoldedGlobalKey)
            and min(place.tokens) > attention.to_out.out_features
        ):
            become(attention, FoldedGlobalKey)
            fired += 1
    return fired
