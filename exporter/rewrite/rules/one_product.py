"""Query, key and value as one product, with one rotation for all three."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from exporter.rewrite.places import Place, become, places
from exporter.rewrite.rule import Refusal, Rewrite
from exporter.rewrite.rules.frame_weights import FrameWeights
from exporter.rewrite.rules.heads_first import HeadsFirst
from model.attention import FastAttention, PerformerAttention
from model.classifier import VideoClassifier
from model.projections import HeadProjections
from model.rotary import Rotation


class OneProduct(HeadProjections):
    """Projections of shape `(p 3 h e', d)`: p parts of the channels of a head, then q, k and v.

    Where query and key are rotated there are two parts, the even and the odd channels of a head,
    and e' is half of e. Else there is one part.
    """

    parts: int
    qkv_weight: Tensor
    qkv_bias: Tensor | None

    @torch.no_grad()
    def join_projections(self, *, parts: int) -> None:
        """Replace `to_qkv`; with two parts, reorder the channels that `to_out` reads."""
        self.parts = parts
        factors = (self.qk_factor, self.qk_factor, 1.0)
        for name, rows in (("qkv_weight", self.to_qkv.weight), ("qkv_bias", self.to_qkv.bias)):
            joined = None if rows is None else self._join(rows, factors)
            self.register_buffer(name, joined)
        out = self.to_out.weight
        out.copy_(_even_first(out.clone(), self.heads, parts))
        del self.to_qkv

    def project_heads(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of tokens `(b, ..., n, d)`, each `(b, ..., h, n, e)`."""
        rows = F.linear(x, self.qkv_weight, self.qkv_bias)
        rows = rows.unflatten(-1, (self.parts, 3, self.heads, -1))  # ... n p 3 h e'
        joined = rows.squeeze(-4) if rotation is None else self._turn(rows, rotation)  # ... n 3 h e
        q, k, v = joined.movedim(-3, 0).transpose(-3, -2)  # each ... h n e
        return self.select_queries(q), k, v

    def _turn(self, rows: Tensor, rotation: Rotation) -> Tensor:
        """Rotate query and key, and set the parts side by side: `(..., n, 2, 3, h, e')`."""
        cos, sin = (table.unflatten(-1, (self.heads, -1, 2)) for table in rotation)
        still = torch.ones_like(cos), torch.zeros_like(sin)  # the value is not rotated
        cos = torch.stack((cos, cos, still[0]), dim=-4)  # n 3 h e' 2
        sin = torch.stack((sin, sin, still[1]), dim=-4)
        even, odd = rows[..., 0, :, :, :], rows[..., 1, :, :, :]
        turned = even * cos[..., 0] + odd * sin[..., 0], odd * cos[..., 1] + even * sin[..., 1]
        return torch.cat(turned, dim=-1)

    def _join(self, rows: Tensor, factors: tuple[float, ...]) -> Tensor:
        """Rows of query, key and value by part: `(3 c, ...) -> (p 3 h e', ...)`."""
        scales = torch.tensor(factors, dtype=torch.float64, device=rows.device)
        by_kind = rows.double().unflatten(0, (3, -1))
        by_kind = by_kind * scales.view(3, *(1,) * rows.ndim)  # 3 c ...
        by_part = by_kind.unflatten(1, (self.heads, -1, self.parts))  # 3 h e' p ...
        return by_part.movedim(3, 0).flatten(0, 3).contiguous().to(rows)


class OneProductRewrite(Rewrite[Place]):
    """Project query, key and value of softmax and FAVOR+ attention by one matrix.

        [q, k, v] = x W

    With the even channels a and the odd channels b of each head apart, one rotation serves all
    three, by angle zero for the value:

        R (a, b) = (a cos - b sin, b cos + a sin)

    A product of query and key does not depend on the order of their channels if both have the same
    order. The random features and the output projection take the order of the channels. TensorRT
    then needs one kernel between the product and the attention: it rotates, and lays out query, key
    and value. ONNX Runtime on a CPU is slow at the splits.
    """

    name = "one_product"
    targets = frozenset({"tensorrt"})

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Place]:  # noqa: D102
        return places(model, clips)

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        attention = place.attention
        if isinstance(attention, FastAttention):
            return Refusal("the additive attention adds its query, in the order of its channels")
        if isinstance(attention, FrameWeights | HeadsFirst):
            return Refusal("the projections have weights of each frame or head")
        if isinstance(attention, OneProduct):
            return Refusal("it is applied already")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        attention, parts = place.attention, 1 if place.rotary is None else 2
        become(attention, OneProduct).join_projections(parts=parts)
        if isinstance(attention, PerformerAttention):
            features = attention.projection_matrix
            features.copy_(_even_first(features.clone(), 1, parts))


def _even_first(rows: Tensor, heads: int, parts: int) -> Tensor:
    """Within each head, even channels before odd ones: `(o, h e) -> (o, h e)`."""
    return rows.unflatten(1, (heads, -1, parts)).transpose(2, 3).flatten(1)


one_product = OneProductRewrite()
