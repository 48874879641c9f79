"""Attention through time with the rotation of each frame in its own projection."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.rewrite.places import Folded, Place, become, places
from exporter.rewrite.rule import Refusal, Rewrite
from exporter.rewrite.rules.fold_norm import MeanOne, with_bias
from model.attention import FastAttention
from model.block import Block
from model.classifier import VideoClassifier
from model.precision import as_type_of, at_least_float32
from model.projections import HeadProjections, Projection
from model.rotary import RotaryTables, Rotation, swap_pairs
from model.spacetime import Rearranged, Step
from model.upstream import UpstreamFastAttention


class FrameWeights(HeadProjections):
    """Query and key of `(b, f, g, d)`, by weights of each frame; groups are made afterwards."""

    rotated_query: Tensor
    rotated_query_bias: Tensor | None
    rotated_key: Tensor
    rotated_key_bias: Tensor | None


class FrameHeads(FrameWeights):
    """Softmax and FAVOR+ attention: weights by frame and head, `(f, h, d, e)`."""

    value_weight: Tensor
    value_bias: Tensor | None

    @torch.no_grad()
    def fold(self, rotation: Rotation) -> None:
        """Make the weights for the angles of the frames, `(f, c)` in float64."""
        query, key, value = self.split_weights()
        split = (self.heads, self.dim_head)
        for name, projection in (("query", query), ("key", key)):
            weight, bias = _rotated(projection, rotation, self.qk_factor)
            weight = weight.unflatten(-1, split).transpose(1, 2)  # f h d e
            self.register_buffer(f"rotated_{name}", weight.contiguous())
            bias = None if bias is None else bias.unflatten(-1, split).unsqueeze(-2)
            self.register_buffer(f"rotated_{name}_bias", bias)  # f h 1 e
        weight = value.weight.T.unflatten(-1, split).transpose(0, 1)  # h d e
        self.register_buffer("value_weight", weight.contiguous())
        bias = None if value.bias is None else value.bias.view(self.heads, 1, -1)
        self.register_buffer("value_bias", bias)
        del self.to_qkv

    def project_heads(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of `(b, f, g, d)`, each `(b, h g, f, e)`.

        Heads and groups are in one axis. So the transposition of the key stays an operation of its
        own, which a product does on its way. Merged into the transposition before it, channel by
        channel, it is slow.
        """
        by_head = x.unsqueeze(2)  # b f 1 g d
        q = _add(by_head @ self.rotated_query, self.rotated_query_bias)  # b f h g e
        k = _add(by_head @ self.rotated_key, self.rotated_key_bias)  # b f h g e
        v = _add(x.flatten(1, 2).unsqueeze(1) @ self.value_weight, self.value_bias)  # b h fg e
        v = v.unflatten(2, x.shape[1:3])
        q, k = q.permute(0, 2, 3, 1, 4), k.permute(0, 2, 3, 1, 4)  # b h g f e
        return q.flatten(1, 2), k.flatten(1, 2), v.transpose(2, 3).flatten(1, 2)

    def merge_heads(self, x: Tensor) -> Tensor:
        """`(b, h g, f, e) -> (b, f, g, c)`."""
        return x.unflatten(1, (self.heads, -1)).permute(0, 3, 2, 1, 4).flatten(-2)


class FrameAdditive(FrameWeights, FastAttention):
    """Additive attention: weights by frame, `(f, d, c)`, and the projection after it folded in."""

    residual_weight: Tensor

    @torch.no_grad()
    def fold(self, rotation: Rotation, after: nn.Linear, *, mean_one: bool) -> None:
        """Make the weights for the angles of the frames, `(f, c)` in float64.

        Where the tokens have the mean one, the residual's weight adds the bias of the output.
        """
        query, key, _ = self.split_weights()
        for name, projection in (("query", query), ("key", key)):
            weight, bias = _rotated(projection, rotation, 1.0)
            self.register_buffer(f"rotated_{name}", weight)
            bias = None if bias is None else bias.unsqueeze(1)
            self.register_buffer(f"rotated_{name}_bias", bias)  # f 1 c
        outer, out = after.weight.double(), self.to_out
        bias = outer @ out.bias.double() + after.bias.double()
        if query.bias is not None:
            bias = bias + outer @ query.bias.double()
        residual = outer @ query.weight.double()
        self.register_buffer("residual_weight", residual.to(query.weight))
        out.weight.copy_(outer @ out.weight.double())
        if mean_one:
            self.residual_weight.copy_(with_bias(residual, bias))
            out.register_parameter("bias", None)
        else:
            out.bias.copy_(bias)

    def attend(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """`(b, f, g, d) -> (b, f, g, d)`."""
        q = _add(x @ self.rotated_query, self.rotated_query_bias)  # b f g c
        k = _add(x @ self.rotated_key, self.rotated_key_bias)  # b f g c
        global_key = self.find_global_key_of_frames(q, k)  # b 1 g c, or b f g c
        v = F.linear(x, *self.split_weights()[2])
        residual = F.linear(x, self.residual_weight)
        return self.to_out(as_type_of(v, global_key) * v) + residual

    def find_global_key_of_frames(self, q: Tensor, k: Tensor) -> Tensor:
        """Equations (1) to (5) over the frames: `(b, f, g, c), (b, f, g, c) -> (b, 1, g, c)`.

        No groups are made: transposing the few logits of each group takes longer than the rest.
        """
        if isinstance(self, UpstreamFastAttention):
            return self.find_global_key(q.transpose(1, 2), k.transpose(1, 2)).transpose(1, 2)
        global_query = self.pool_frames(self.dot(q, self.per_head(self.Wq)), q)
        p = as_type_of(k, global_query) * k
        return self.pool_frames(self.dot(p, self.per_head(self.Wk)), p)

    def pool_frames(self, logits: Tensor, x: Tensor) -> Tensor:
        """Average over the frames by softmax: `(b, f, g, h), (b, f, g, c) -> (b, 1, g, c)`."""
        logits = at_least_float32(logits)
        weights = (logits - logits.amax(1, keepdim=True)).exp()  # b f g h
        by_channel = self.head_mask.to(weights.dtype)  # h c
        pooled = _sum_frames(weights @ by_channel * at_least_float32(x))
        return pooled / (weights.sum(1, keepdim=True) @ by_channel)


class FrameBlock(Block):
    """A block whose attention through time makes its groups itself."""

    def attend_patches(self, step: Step, x: Tensor, rotary: RotaryTables | None) -> Tensor:
        """`(b, f h w, d) -> (b, f h w, d)`."""
        attention = self.get_submodule(f"attn_{step.name}")
        if not isinstance(attention.fn, FrameWeights):
            return super().attend_patches(step, x, rotary)
        frames = x.unflatten(1, (step.grid.frames, -1))  # b f g d
        return self.attend_frames(attention, frames).flatten(1, 2)

    def attend_frames(self, attention: nn.Module, frames: Tensor) -> Tensor:
        """`(b, f, g, d) -> (b, f, g, d)`."""
        return attention(frames)


class FrameWeightsRewrite(Rewrite[Place]):
    """Fold the rotation through time into projections of query and key, one for each frame.

        R_f (W x_f) = (R_f W) x_f

    All tokens of a frame are rotated by the same angles. So no token needs to be rotated, and the
    groups of one patch through time are made of projected tokens. The projection after additive
    attention is folded in too:

        F (W_o u + W_q x + b_o) + b_f = (F W_o) u + (F W_q) x + (F b_o + b_f)

    The matrices are read again for each clip. They are worth it where they are at most twice as
    large as the tokens: where a frame has at least d / 2 patches.
    """

    name = "frame_weights"
    folds_modules = True
    # TensorRT fuses no attention whose query is a product with weights that are stacked by frame.
    targets = frozenset({"onnxruntime"})
    int8_below_dim = 384  # from there on integer products are ahead of it (ONNX Runtime)

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Place]:  # noqa: D102
        return places(model, clips)

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        step = place.step
        if place.rotary is None:
            return Refusal("query and key are not rotated")
        if isinstance(place.attention, FrameWeights):
            return Refusal("it is applied already")
        if place.is_last or not (isinstance(step, Rearranged) and step.is_one_patch_through_time):
            return Refusal("the step is not one patch through all frames")
        if 2 * step.grid.height * step.grid.width < place.dim:
            return Refusal("a frame has fewer patches than half the token width")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        attention, block, path = place.attention, place.block, f"fc_{place.step.name}"
        assert place.rotary is not None
        rotation = copy.deepcopy(place.rotary).double()[place.step.keys[0]]
        if isinstance(attention, FastAttention):
            after = block.get_submodule(path)
            assert isinstance(after, nn.Linear)
            mean_one = isinstance(block.get_submodule(f"attn_{place.step.name}.norm"), MeanOne)
            become(attention, FrameAdditive).fold(rotation, after, mean_one=mean_one)
            block.add_module(path, Folded())
        else:
            become(attention, FrameHeads).fold(rotation)
        if not isinstance(block, FrameBlock):
            become(block, FrameBlock)


def _rotated(
    projection: Projection, rotation: Rotation, factor: float
) -> tuple[Tensor, Tensor | None]:
    """Weight `(f, d, c)` and bias `(f, c)` of the rotated projection of each frame."""

    def turn(rows: Tensor) -> Tensor:  # c ... -> f c ...
        cos, sin = (table.view(*table.shape, *(1,) * (rows.ndim - 1)) for table in rotation)
        return (rows * cos + swap_pairs(rows) * sin) * factor

    weight, bias = projection
    turned = turn(weight.double()).transpose(1, 2).contiguous().to(weight)
    return turned, None if bias is None else turn(bias.double()).to(bias)


def _sum_frames(x: Tensor) -> Tensor:
    """`(b, f, ...) -> (b, 1, ...)`, as a product: ONNX Runtime sums outer axes on one thread."""
    return (x.new_ones(1, x.shape[1]) @ x.flatten(2)).unflatten(2, x.shape[2:])


def _add(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


frame_weights = FrameWeightsRewrite()
