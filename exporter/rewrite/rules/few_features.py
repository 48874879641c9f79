"""FAVOR+ on few tokens in fewer passes over the random features."""

from __future__ import annotations

from torch import Tensor

from exporter.rewrite.places import become, places
from model.attention import PerformerAttention, half_square_norms
from model.classifier import VideoClassifier
from model.precision import as_type_of, at_least_float32
from model.upstream import UpstreamPerformerAttention


class FewFeatures(PerformerAttention):
    """FAVOR+ whose weights of tokens for tokens are divided by their own sums."""

    def mix_few(self, q_logits: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As the mechanism's: all of `(..., h, n, e)`, q_logits of m."""
        k_logits = at_least_float32(k @ self.projection_matrix.T)  # ... h n m
        k_logits = k_logits - half_square_norms(k).unsqueeze(-1)
        largest = k_logits.amax(-2, keepdim=True)  # ... h 1 m
        phi_k = as_type_of(v, (k_logits - largest).exp())
        phi_q = as_type_of(v, (q_logits + largest).softmax(-1))
        shares = at_least_float32(phi_q @ phi_k.transpose(-1, -2))  # ... h n n
        return as_type_of(v, shares / shares.sum(-1, keepdim=True)) @ v


def few_features(model: VideoClassifier) -> int:
    """Divide by sums of n numbers instead of sums of m, where n tokens are few.

    With l_j the largest logit of feature j, and the sums s_j = sum_n phi_j(k_n), the mechanism is

        out = sum_j softmax_j(w_j q + l_j + log s_j) phi_j(k) / s_j  v,

    whose s_j cancel but for the sum over j, which is the sum of the shares of all tokens:

        a = softmax_j(w_j q + l_j) phi(k)^T,    out = a / (sum_n a) v.

    The largest softmax is at least 1/m, and phi is 1 there for some token, so that the sum of the
    shares does not vanish either. It fires where n is at most e, as the mechanism does.

    Returns:
        At how many places it fired.
    """
    fired = 0
    for place in places(model):
        attention = place.attention
        if (
            isinstance(attention, PerformerAttention)
            and not isinstance(attention, UpstreamPerformerAttention | FewFeatures)
            and min(place.tokens) <= attention.dim_head
        ):
            become(attention, FewFeatures)
            fired += 1
    return fired
