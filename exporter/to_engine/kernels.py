"""What the builder of TensorRT fused: its list of layers, read as text (pure).

With detailed profiling, TensorRT-RTX logs one message `Layers:` while it builds, on a machine
without a GPU too. Each line is one step of the engine:

    Name: _gemm_mha_v2_myl0_6, LayerType: kgen, Inputs: [ … ], …, Metadata: [ONNX Layer: node_7]

A step is a kernel, apart from the types that only order streams or hold constants. The name of a
kernel tells whether it is a fused attention. The metadata names the nodes of the graph in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports onnx, which only a build needs
    from exporter.graph.attention import GraphAttention

MARK = "Layers:"  # the first line of the message
NOT_KERNELS = frozenset({"constant", "signal", "wait"})
# Attention of many queries, and of one query.
FUSED_ATTENTIONS = ("_gemm_mha_v2", "_gemv_mha_v1")
_LINE = re.compile(r"Name: (?P<name>.+?), LayerType: (?P<kind>\w+)")
_NODE = re.compile(r"ONNX Layer: ([^\]]+)")


@dataclass(frozen=True)
class Layer:
    """One step of an engine: its name, its type, and the nodes of the graph that it computes."""

    name: str
    kind: str
    nodes: tuple[str, ...] = ()

    @property
    def is_kernel(self) -> bool:
        """Whether the step runs on the GPU."""
        return self.kind not in NOT_KERNELS

    @property
    def is_fused_attention(self) -> bool:
        """Whether the step is a whole attention."""
        return self.name.startswith(FUSED_ATTENTIONS)


@dataclass(frozen=True)
class Unfused:
    """An attention that is no single kernel: the path of its module, and the reason if known."""

    module: str | None
    reason: str = ""


@dataclass(frozen=True)
class Fusion:
    """What became of a graph in an engine.

    Attributes:
        kernels: Kernels of one run.
        kernel_kinds: Their number by the type that TensorRT gives them.
        attentions: Softmax attentions in the graph; None if the graph was not read.
        fused_attentions: How many of these are one kernel; None as above.
        unfused: The others.
    """

    kernels: int
    kernel_kinds: Mapping[str, int]
    attentions: int | None
    fused_attentions: int | None
    unfused: tuple[Unfused, ...] = ()


def parse_layers(message: str) -> tuple[Layer, ...]:
    """Read the message; lines that are no step are left out."""
    found = ((_LINE.match(line), line) for line in message.splitlines())
    return tuple(
        Layer(match["name"], match["kind"], tuple(dict.fromkeys(_NODE.findall(line))))
        for match, line in found
        if match
    )


def find_fusion(layers: Sequence[Layer], sought: Iterable[GraphAttention] | None) -> Fusion:
    """Say what an engine fuses of the attentions of its graph; None if the graph was not read."""
    kernels = [layer for layer in layers if layer.is_kernel]
    inside = {name for layer in kernels if layer.is_fused_attention for name in layer.nodes}
    kinds = dict(Counter(layer.kind for layer in kernels).most_common())
    if sought is None:
        return Fusion(len(kernels), kinds, None, None)
    attentions = list(sought)
    unfused = [entry for entry in attentions if inside.isdisjoint(entry.nodes)]
    return Fusion(
        kernels=len(kernels),
        kernel_kinds=kinds,
        attentions=len(attentions),
        fused_attentions=len(attentions) - len(unfused),
        unfused=tuple(Unfused(entry.module, entry.obstacle) for entry in unfused),
    )
