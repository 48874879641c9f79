"""Query, key and value projected head by head; even and odd channels apart for the rotation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from exporter.rewrite.places import Place, become, places
from exporter.rewrite.rule import Refusal, Rewrite
from exporter.rewrite.rules.frame_weights import FrameWeights
from model.attention import FastAttention, PerformerAttention
from model.classifier import VideoClassifier
from model.projections import HeadProjections, Projection
from model.rotary import Rotation


class HeadsFirst(HeadProjections):
    """Projections of shape `(h, d, e)`, one matrix for each head: no output is split.

    A rotated query or key has two projections: 0 makes the even and 1 the odd channels of each
    head. A projection that is not rotated has the first one only, which makes all channels.
    """

    halved: bool  # whether query and key are rotated
    query_weight_0: Tensor
    query_bias_0: Tensor | None
    query_weight_1: Tensor
    query_bias_1: Tensor | None
    key_weight_0: Tensor
    key_bias_0: Tensor | None
    key_weight_1: Tensor
    key_bias_1: Tensor | None
    value_weight_0: Tensor
    value_bias_0: Tensor | None

    def split_projections(self, *, halved: bool) -> None:
        """Replace `to_qkv`."""
        self.halved = halved
        query, key, value = self.split_weights()
        self._store("query", query, self.qk_factor, parts=1 + halved)
        self._store("key", key, self.qk_factor, parts=1 + halved)
        self._store("value", value, 1.0, parts=1)
        del self.to_qkv

    def project_heads(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of tokens `(b, ..., n, d)`, each `(b, h, ..., n, e)`."""
        asking, query_rotation = self.select_queries(x), rotation
        if rotation is not None:
            query_rotation = Rotation(
                self.select_queries(rotation.cos), self.select_queries(rotation.sin)
            )
        tokens = _in_a_row(x)  # once: each call is a node of its own
        asking_tokens = tokens if asking is x else _in_a_row(asking)
        query = [_project(asking_tokens, self.query_weight_0, self.query_bias_0, asking.shape)]
        if self.halved:
            query.append(
                _project(asking_tokens, self.query_weight_1, self.query_bias_1, asking.shape)
            )
        key = [_project(tokens, self.key_weight_0, self.key_bias_0, x.shape)]
        if self.halved:
            key.append(_project(tokens, self.key_weight_1, self.key_bias_1, x.shape))
        value = _project(tokens, self.value_weight_0, self.value_bias_0, x.shape)
        return self._turn(query, query_rotation), self._turn(key, rotation), value

    def merge_heads(self, x: Tensor) -> Tensor:
        """`(b, h, ..., n, e) -> (b, ..., n, c)`."""
        return x.movedim(1, -2).flatten(-2)

    @torch.no_grad()
    def _store(self, name: str, projection: Projection, factor: float, *, parts: int) -> None:
        for part in range(parts):
            weight = self._rows(projection.weight, factor, part, parts)
            bias = projection.bias
            bias = None if bias is None else self._rows(bias, factor, part, parts)
            self.register_buffer(f"{name}_weight_{part}", weight)
            self.register_buffer(f"{name}_bias_{part}", bias)

    def _rows(self, rows: Tensor, factor: float, part: int, parts: int) -> Tensor:
        """Every `parts`-th row from the row `part` on, by head: `(c, d) -> (h, d, e / parts)`.

        A bias `(c,)` becomes `(h, 1, e / parts)`.
        """
        by_head = (rows.double() * factor).reshape(self.heads, -1, parts, rows[0].numel())
        return by_head[:, :, part].transpose(1, 2).contiguous().to(rows)

    def _turn(self, parts: list[Tensor], rotation: Rotation | None) -> Tensor:
        """Rotate even and odd channels, and set them side by side: `(b, h, ..., n, e)`."""
        if rotation is None:
            return parts[0]
        even, odd = parts
        cos = rotation.cos.unflatten(-1, (self.heads, -1, 2))[..., 0, :, :]
        sin = rotation.sin.unflatten(-1, (self.heads, -1, 2))[..., 0, :, :]
        return torch.cat(
            (
                even * cos[..., 0] + odd * sin[..., 0],
                odd * cos[..., 1] + even * sin[..., 1],
            ),
            dim=-1,
        )


class HeadsFirstRewrite(Rewrite[Place]):
    """Project query, key and value of softmax and FAVOR+ attention head by head.

        q_h = x W_h,    W of shape (h, d, e)

    is a product of h batches, and its result lies as the attention wants it. Where tokens are
    rotated, the even channels a and the odd channels b of a head are projected apart:

        R (a, b) = (a cos - b sin, b cos + a sin)

    They stay apart: a product of query and key does not depend on the order of their channels if
    both have the same order. So no projection is made twice to swap its channels. The random
    features take the same order. The scale of the logits is folded into the weights.
    """

    name = "heads_first"
    changes = frozenset({"attentions"})  # their heads come before their groups
    targets = frozenset({"onnxruntime"})  # TensorRT has fewer kernels with `one_product`
    int8_below_dim = 384  # from there on integer products are ahead of it (ONNX Runtime)

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Place]:  # noqa: D102
        return places(model, clips)

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        attention = place.attention
        if isinstance(attention, FastAttention):
            return Refusal("the additive attention adds its query, in the order of its channels")
        if isinstance(attention, FrameWeights):
            return Refusal("the projections have weights of each frame")
        if isinstance(attention, HeadsFirst):
            return Refusal("it is applied already")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        attention, halved = place.attention, place.rotary is not None
        become(attention, HeadsFirst).split_projections(halved=halved)
        if halved and isinstance(attention, PerformerAttention):
            features = attention.projection_matrix
            features.copy_(features.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1))


def _in_a_row(x: Tensor) -> Tensor:
    """`(b, ..., n, d) -> (b, 1, ... n, d)`."""
    return x.flatten(1, -2).unsqueeze(1)


def _project(tokens: Tensor, weight: Tensor, bias: Tensor | None, shape: torch.Size) -> Tensor:
    """Project tokens in a row, `(b, 1, ... n, d)`, that were of `shape` `(b, ..., n, d)`.

    Returns:
        `(b, h, ..., n, e)`, or half of the channels e.
    """
    projected = tokens @ weight  # b h gn e
    projected = projected if bias is None else projected + bias
    return projected.unflatten(2, shape[1:-1])


heads_first = HeadsFirstRewrite()
