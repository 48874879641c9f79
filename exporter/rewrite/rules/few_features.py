"""FAVOR+ on few tokens in fewer passes over the random features."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from exporter.rewrite.places import Place, become, places
from exporter.rewrite.rule import Refusal, Rewrite
from model.attention import PerformerAttention, half_square_norms
from model.classifier import VideoClassifier
from model.precision import as_type_of, at_least_float32
from model.upstream import UpstreamPerformerAttention


class FewFeatures(PerformerAttention):
    """FAVOR+ whose weights of tokens for tokens are divided by their own sums."""

    def mix_few(self, q_logits: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `PerformerAttention.mix_few`: k and v `(..., h, n, e)`, q_logits `(..., h, n, m)`."""
        k_logits = at_least_float32(k @ self.projection_matrix.T)  # ... h n m
        k_logits = k_logits - half_square_norms(k).unsqueeze(-1)
        largest = k_logits.amax(-2, keepdim=True)  # ... h 1 m
        phi_k = as_type_of(v, (k_logits - largest).exp())
        phi_q = as_type_of(v, (q_logits + largest).softmax(-1))
        shares = at_least_float32(phi_q @ phi_k.transpose(-1, -2))  # ... h n n
        return as_type_of(v, shares / shares.sum(-1, keepdim=True)) @ v


class FewFeaturesRewrite(Rewrite[Place]):
    """Divide by sums over n tokens instead of sums over m features, where a group has few tokens.

    With l_j the largest logit of feature j, and the sums s_j = sum_n phi_j(k_n), the mechanism is

        out = sum_j softmax_j(w_j q + l_j + log s_j) phi_j(k) / s_j  v

    The s_j cancel, except in the sum over j, which is the sum of the shares of all tokens:

        a = softmax_j(w_j q + l_j) phi(k)^T,    out = a / (sum_n a) v

    The largest softmax is at least 1/m, and phi is 1 there for some token. So the sum of the shares
    does not vanish.
    """

    name = "few_features"
    targets = frozenset({"onnxruntime"})  # TensorRT pads and divides the shares in more kernels

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Place]:  # noqa: D102
        return places(model, clips)

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        attention = place.attention
        if not isinstance(attention, PerformerAttention):
            return Refusal("the mechanism has no random features")
        if isinstance(attention, UpstreamPerformerAttention):
            return Refusal("the published performer does not use its random features")
        if isinstance(attention, FewFeatures):
            return Refusal("it is applied already")
        if min(place.tokens) > attention.dim_head:  # then the mechanism itself mixes otherwise
            return Refusal("a group has more tokens than a head has channels")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        become(place.attention, FewFeatures)


few_features = FewFeaturesRewrite()
