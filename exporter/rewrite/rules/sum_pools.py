"""Additive attention pools its tokens by sums instead of matrix products."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from exporter.rewrite.places import Place, become, places
from exporter.rewrite.rule import Refusal, Rewrite
from exporter.rewrite.rules.frame_weights import FrameWeights
from exporter.rewrite.rules.pooled_rotation import PooledRotation
from model.attention import FastAttention
from model.classifier import VideoClassifier
from model.precision import at_least_float32
from model.upstream import UpstreamFastAttention


class SumPools(FastAttention):
    """Additive attention whose logits and averages are sums of products, head by head."""

    def find_global_key(self, q: Tensor, k: Tensor) -> Tensor:
        """Equations (1) to (5): `(..., n, c), (..., n, c) -> (..., 1, c)`."""
        q, k = self._by_head(q), self._by_head(k)  # ... n h e
        global_query = _pool(q, self._row(self.Wq))  # ... 1 h e
        global_key = global_query * _pool(k, global_query * self._row(self.Wk))
        return global_key.flatten(-2)

    def _by_head(self, x: Tensor) -> Tensor:
        """`(..., n, c) -> (..., n, h, e)`, in at least float32."""
        return at_least_float32(x.unflatten(-1, (self.heads, self.dim_head)))

    def _row(self, weights: nn.Linear) -> Tensor:
        """The logit weights of a head, scaled: `(1, e)`."""
        return at_least_float32(weights.weight) * self.scale


class SumPoolsRewrite(Rewrite[Place]):
    """Compute the logits and the averages of additive attention as sums.

        l_i = sum_e w_e q_ie,    pooled_e = sum_i softmax_i(l)_i q_ie

    Each is a product with one row for each head. As matrix products they have a side of h, such as
    2, for which TensorRT pads and transposes its tensors, in six kernels for each average. As sums
    they are part of the kernels around them. ONNX Runtime on a CPU is slow at such sums.
    """

    name = "sum_pools"
    targets = frozenset({"tensorrt"})

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Place]:  # noqa: D102
        return places(model, clips)

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        attention = place.attention
        if not isinstance(attention, FastAttention):
            return Refusal("the mechanism does not pool its queries")
        if isinstance(attention, UpstreamFastAttention):
            return Refusal("the published package pools over features")
        if isinstance(attention, FrameWeights | PooledRotation):
            return Refusal("another rewrite pools its tokens")
        if isinstance(attention, SumPools):
            return Refusal("it is applied already")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        become(place.attention, SumPools)


def _pool(x: Tensor, row: Tensor) -> Tensor:
    """Average tokens by softmax: `(..., n, h, e), (..., h, e) -> (..., 1, h, e)`."""
    logits = (x * row).sum(-1, keepdim=True)  # ... n h 1
    return (logits.softmax(-3) * x).sum(-3, keepdim=True)


sum_pools = SumPoolsRewrite()
