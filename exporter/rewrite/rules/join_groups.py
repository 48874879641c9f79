"""Attention sees all groups of all clips as one axis, so that its heads are of four axes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from exporter.rewrite.places import Place, become, places
from exporter.rewrite.rule import Refusal, Rewrite
from model.attention import Attention, RegularAttention
from model.classifier import VideoClassifier
from model.rotary import Rotation
from model.spacetime import Rearranged
from model.upstream import UpstreamJointBlock

_LEAST_TOKENS = 32  # fewer are no faster in one kernel


class JoinedGroups(Attention):
    """Attention of tokens `(b, g, n, d)` that are computed as `(b g, n, d)`."""

    def attend(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """`(b, g, n, d) -> (b, g, n, d)`; each group has the same rotation, `(n, e)`."""
        joined = super().attend(x.flatten(0, 1), rotation)  # type: ignore[safe-super]  # of its own class
        return joined.unflatten(0, (-1, x.shape[1]))


class JoinGroupsRewrite(Rewrite[Place]):
    """Let softmax attention have one axis for its groups and clips.

        softmax(q k^T / sqrt(e)) v    of shapes (b g, h, n, e) instead of (b, g, h, n, e)

    OpenVINO makes one kernel of both products and the softmax where they have four axes. With five
    it writes all weights of the attention to memory, and reads them again.
    """

    name = "join_groups"
    targets = frozenset({"openvino"})
    precisions = frozenset({"fp16", "bf16"})  # in float32 the layout of ONNX Runtime is faster
    changes = frozenset({"attentions"})  # their groups are no axis of their own

    def find(self, model: VideoClassifier, clips: int) -> Iterator[Place]:  # noqa: D102
        return places(model, clips)

    def fits(self, place: Place) -> Refusal | None:  # noqa: D102
        if not isinstance(place.attention, RegularAttention):
            return Refusal("the mechanism has no softmax over tokens")
        if isinstance(place.attention, JoinedGroups):
            return Refusal("it is applied already")
        if isinstance(place.block, UpstreamJointBlock):
            return Refusal("the step has no axis of groups")
        if max(place.tokens) < _LEAST_TOKENS:
            return Refusal("a group has few tokens")
        if place.rotary is not None and not isinstance(place.step, Rearranged):
            return Refusal("the rotations of the groups differ")
        return None

    def apply(self, place: Place) -> None:  # noqa: D102
        become(place.attention, JoinedGroups)


join_groups = JoinGroupsRewrite()
