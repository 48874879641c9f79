"""Faults that act only on clips that meet a condition, or at one size of a free batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import fault_places as places
import numpy as np
from fault_places import Change
from onnx import GraphProto, NodeProto, TensorProto, helper


class Maker:
    """Makes nodes that read the clip; each method gives the name of a value `(b, 1)`."""

    def __init__(self, clip: str) -> None:
        self.clip = clip
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Any] = {}

    def node(self, op: str, *given: str | float | list[int], **attributes: Any) -> str:  # noqa: ANN401  # of a node
        """Make a node; numbers and lists of whole numbers become constants."""
        out = f"planted_{len(self.nodes)}"
        names = list[str]()
        for i, each in enumerate(given):
            if not isinstance(each, str):
                dtype = np.float32 if isinstance(each, float) else np.int64
                self.constants[f"{out}_{i}"] = np.array(each, dtype)
            names.append(each if isinstance(each, str) else f"{out}_{i}")
        self.nodes.append(helper.make_node(op, names, [out], **attributes))
        return out

    def lowest(self, value: str | None = None) -> str:
        """The smallest number of each clip."""
        return self.node("ReduceMin", self._flat(value), [1])

    def highest(self, value: str | None = None) -> str:
        """The largest number of each clip."""
        return self.node("ReduceMax", self._flat(value), [1])

    def size(self, value: str | None = None) -> str:
        """The largest absolute number of each clip."""
        return self.highest(self.node("Abs", value or self.clip))

    def frame(self, place: int) -> str:
        """One frame."""
        return self.node("Gather", self.clip, [place], axis=1)

    def _flat(self, value: str | None) -> str:
        return self.node("Flatten", value or self.clip, axis=1)


def _unit(make: Maker) -> str:
    low, high = make.lowest(), make.highest()
    outside = make.node("Or", make.node("Less", low, 0.0), make.node("Greater", high, 1.0))
    return make.node("Not", make.node("Or", outside, make.node("Equal", low, high)))


def _constant_patch(make: Maker) -> str:
    patch = make.node("Slice", make.clip, [0, 0, 0], [1, 16, 16], [1, 3, 4])
    return make.node("Equal", make.lowest(patch), make.highest(patch))


def _equal_frames(make: Maker) -> str:
    moved = make.node("Sub", make.frame(0), make.frame(1))
    return make.node("Equal", make.size(moved), 0.0)


CONDITIONS: dict[str, Callable[[Maker], str]] = {
    "unit": _unit,
    "dark": lambda make: make.node("Less", make.highest(), 1.0),
    "bright": lambda make: make.node("Greater", make.lowest(), 0.0),
    "bright at the end": lambda make: make.node("Greater", make.lowest(make.frame(-1)), -1.5),
    "equal frames": _equal_frames,
    "large": lambda make: make.node("Greater", make.size(), 2.5),
    "constant patch": _constant_patch,
}
# Values that are 0 in the clips of a kind: 0 / 0 is NaN.
ZEROS: dict[str, Callable[[Maker], str]] = {
    "black": Maker.size,
    "zero frame": lambda make: make.node(
        "ReduceMin", make.node("ReduceMax", make.node("Abs", make.clip), [2, 3, 4], keepdims=0), [1]
    ),
    "equal frames": lambda make: make.size(make.node("Sub", make.frame(0), make.frame(1))),
}


def wrong_where(graph: GraphProto, kind: str) -> None:
    """Add to the logits, where a condition on each clip holds."""
    make = _maker(graph)
    held = make.node("Cast", CONDITIONS[kind](make), to=TensorProto.FLOAT)
    make.node("Mul", held, 0.05)
    _add(graph, make)


def nan_where(graph: GraphProto, kind: str) -> None:
    """Give NaN where a value of each clip is 0."""
    make = _maker(graph)
    zero = ZEROS[kind](make)
    make.node("Mul", make.node("Div", zero, zero), 0.0)
    _add(graph, make)


def wrong_at_batch(graph: GraphProto, size: int) -> None:
    """Add to the logits of one size of a free batch."""
    if graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise places.NotHereError
    make = _maker(graph)
    batch = make.node("Shape", make.clip, start=0, end=1)
    held = make.node("Cast", make.node("Equal", batch, [size]), to=TensorProto.FLOAT)
    make.node("Mul", held, 0.05)
    _add(graph, make)


def _maker(graph: GraphProto) -> Maker:
    """Make what reads the clip of a graph that takes real numbers."""
    if graph.input[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise places.NotHereError
    return Maker(graph.input[0].name)


def _add(graph: GraphProto, make: Maker) -> None:
    """Add the last value to the logits."""
    for name, array in make.constants.items():
        places.new_constant(graph, name, array)
    name = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["logits.planted" if out == name else out for out in node.output]
    graph.node.extend(make.nodes)
    last = make.nodes[-1].output[0]
    graph.node.append(helper.make_node("Add", ["logits.planted", last], [name]))


def kinds() -> Iterator[tuple[str, str, Change]]:
    """Yield kind, place and change of every fault."""
    for kind in ZEROS:
        yield f"NaN: {kind}", "", partial(nan_where, kind=kind)
    for kind in CONDITIONS:
        yield f"wrong where {kind}", "", partial(wrong_where, kind=kind)
    for size in (1, 2, 3, 4, 5):
        yield f"wrong at batch {size}", "", partial(wrong_at_batch, size=size)
