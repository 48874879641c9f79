"""Query, key and value projected head by head, and halves of channels apart for the rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.rewrite.places import become, places
from exporter.rewrite.rules.frame_weights import FrameWeights
from model.attention import FastAttention, HeadProjections, PerformerAttention, Projection
from model.classifier import VideoClassifier
from model.rotary import Rotation


class HeadsFirst(HeadProjections):
    """Projections of shape `(h, d, e)`, one matrix for each head: none splits its output.

    A rotated projection comes in two, of the even and the odd channels of each head.
    """

    def split_projections(self, parts: int) -> None:
        """Replace `to_qkv`; query and key are cut in `parts`."""
        factors = {"query": self.qk_factor, "key": self.qk_factor, "value": 1.0}
        projections = zip(factors.items(), self.split_weights(), strict=True)
        self.parts: dict[str, int] = {}
        for (name, factor), projection in projections:
            self.parts[name] = 1 if name == "value" else parts
            self._store(name, projection, factor)
        del self.to_qkv

    def project_heads(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of tokens `(b, ..., n, d)`, each `(b, h, ..., n, e)`."""
        asked = self.asking(x)
        asked_rotation = None if rotation is None else Rotation(*map(self.asking, rotation))
        tokens = _in_a_row(x)  # once: each would be a node of its own
        query = self._project("query", tokens if asked is x else _in_a_row(asked), asked.shape)
        key = self._project("key", tokens, x.shape)
        (value,) = self._project("value", tokens, x.shape)
        return self._turn(query, asked_rotation), self._turn(key, rotation), value

    def merge_heads(self, x: Tensor) -> Tensor:
        """`(b, h, ..., n, e) -> (b, ..., n, c)`."""
        return x.movedim(1, -2).flatten(-2)

    @torch.no_grad()
    def _store(self, name: str, projection: Projection, factor: float) -> None:
        for kind, tensor in projection._asdict().items():
            for part in range(self.parts[name]):
                value = None
                if tensor is not None:
                    rows = (tensor.double() * factor).reshape(
                        self.heads, -1, self.parts[name], tensor[0].numel()
                    )  # h e/parts parts d|1
                    value = rows[:, :, part].transpose(1, 2).contiguous().to(tensor)
                self.register_buffer(f"{name}_{kind}_{part}", value)

    def _project(self, name: str, tokens: Tensor, shape: torch.Size) -> list[Tensor]:
        """The parts of one projection of tokens that were of `shape` `(b, ..., n, d)`.

        `(b, 1, ... n, d) -> [(b, h, ..., n, e/parts), ...]`.
        """
        projected = []
        for part in range(self.parts[name]):
            made = tokens @ getattr(self, f"{name}_weight_{part}")  # b h gn e/parts
            bias = getattr(self, f"{name}_bias_{part}")
            made = made if bias is None else made + bias
            projected.append(made.unflatten(2, shape[1:-1]))
        return projected

    def _turn(self, parts: list[Tensor], rotation: Rotation | None) -> Tensor:
        """Rotate even and odd channels, and set them side by side: `(b, h, ..., n, e)`."""
        if rotation is None:
            (whole,) = parts
            return whole
        even, odd = parts
        cos, sin = (table.unflatten(-1, (self.heads, -1, 2))[..., 0, :, :] for table in rotation)
        return torch.cat(
            (
                even * cos[..., 0] + odd * sin[..., 0],
                odd * cos[..., 1] + even * sin[..., 1],
            ),
            dim=-1,
        )


def _in_a_row(x: Tensor) -> Tensor:
    """`(b, ..., n, d) -> (b, 1, ... n, d)`."""
    return x.flatten(1, -2).unsqueeze(1)


def heads_first(model: VideoClassifier) -> int:
    """Project query, key and value of softmax and FAVOR+ attention head by head.

        q_h = x W_h,    W of shape (h, d, e)

    is a product of batches h whose result lies as the attention wants it. Where tokens are rotated,
    the even channels a and the odd channels b of a head are projected apart,

        R (a, b) = (a cos - b sin, b cos + a sin),

    and stay so: a product of query and key does not mind the order of their channels if it is the
    same. So no projection is made twice to swap its channels. Random features change their order
    with them. The scale of the logits is folded into the weights.

    It does not fire on the additive attention, whose query is added to its output.

    Returns:
        At how many places it fired.
    """
    fired = 0
    for place in places(model):
        attention = place.attention
        if isinstance(attention, FastAttention | FrameWeights | HeadsFirst):
            continue
        become(attention, HeadsFirst)
        assert isinstance(attention, HeadsFirst)
        attention.split_projections(2 if place.rotated else 1)
        if place.rotated and isinstance(attention, PerformerAttention):
            features = attention.projection_matrix
            features.copy_(features.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1))
        fired += 1
    return fired
