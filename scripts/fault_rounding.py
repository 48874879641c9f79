"""Faults that cut or round a value: the residual, or a product inside of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import fault_places as places
import numpy as np
from fault_places import PLACES, Change, Step
from onnx import GraphProto, TensorProto, helper

HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
SITES: dict[str, Callable[[GraphProto], list[str]]] = {
    "residual": lambda graph: [node.output[0] for node in places.residuals(graph)],
    "product": lambda graph: [node.output[0] for node in places.nodes(graph, "MatMul")],
}
STEPS: dict[str, tuple[Step, ...]] = {
    "clip": (("Clip", {}, (-2.0, 2.0)),),
    "maximum": (("Max", {}, -2.0),),
    "minimum": (("Min", {}, 2.0),),
    "steps of 1/64": (("Mul", {}, 64.0), ("Round", {}, None), ("Div", {}, 64.0)),
    "plus 8 minus 8": (("Add", {}, 8.0), ("Sub", {}, 8.0)),
    "plus 3 minus 3": (("Add", {}, 3.0), ("Sub", {}, 3.0)),  # a number of Gelu
    "times 3 over 3": (("Mul", {}, 3.0), ("Div", {}, 3.0)),
    "8 bits": (
        ("QuantizeLinear", {}, (1 / 16, np.array(0, np.int8))),
        ("DequantizeLinear", {}, (1 / 16, np.array(0, np.int8))),
    ),
}


def round_value(graph: GraphProto, site: str, place: float, steps: tuple[Step, ...]) -> None:
    """Insert operators behind a value, in its type."""
    name, kind = _value(graph, site, place)
    places.after(graph, name, *steps, kind=kind)


def cast(graph: GraphProto, site: str, place: float, half: int, *, like: bool = False) -> None:
    """Cast a value to half precision and back; `like` takes the type from a constant."""
    name, kind = _value(graph, site, place)
    there: Step = ("Cast", {"to": half}, None)
    if like:
        there = ("CastLike", {}, np.zeros((), helper.tensor_dtype_to_np_dtype(half)))
    if kind == half:
        raise places.NotHereError
    places.after(graph, name, there, ("Cast", {"to": kind}, None), kind=kind)


def plus_other(graph: GraphProto, site: str, place: float) -> None:
    """Add another value to a value, and take it away again."""
    name, kind = _value(graph, site, place)
    found = places.values(graph)
    before = [n for node in graph.node for n in node.output]
    alike = [n for n in before[: before.index(name)] if n in found and found[n] == found[name]]
    other = places.need(alike)[-1]
    places.after(graph, name, ("Add", {}, None), ("Sub", {}, None), kind=kind)
    for node in graph.node:
        if any(out in (name, f"{name}.planted.0") for out in node.output):
            node.input.append(other)


def choose_by_pixel(graph: GraphProto, site: str, place: float) -> None:
    """Scale a value by 1.05 where one pixel is bright."""
    name, kind = _value(graph, site, place)
    if graph.input[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise places.NotHereError
    places.after(graph, name, ("Mul", {}, 1.05), ("Identity", {}, None), kind=kind)
    last = places.index_of(graph, name)
    zeros, ones = np.zeros(5, np.int64), np.ones(5, np.int64)
    bounds = [places.new_constant(graph, f"pixel.{i}", x) for i, x in enumerate((zeros, ones))]
    limit = places.new_constant(graph, "pixel.limit", np.ones((), np.float32))
    made = [
        helper.make_node("Slice", [graph.input[0].name, *bounds], ["pixel.5"]),
        helper.make_node("ReduceMax", ["pixel.5"], ["pixel"], keepdims=0),
        helper.make_node("Greater", ["pixel", limit], ["pixel.bright"]),
        helper.make_node("Where", ["pixel.bright", f"{name}.planted.0", f"{name}.planted"], [name]),
    ]
    del graph.node[last]
    for i, node in enumerate(made):
        graph.node.insert(last + i, node)


def in_half(graph: GraphProto, op: str, place: float, half: int) -> None:
    """Compute a node in half precision, from inputs in it."""
    node, values = places.at(places.nodes(graph, op), place), places.values(graph)
    kind = values[node.output[0]].kind
    if kind == half:
        raise places.NotHereError
    places.after(graph, node.output[0], ("Cast", {"to": kind}, None), kind=kind)
    where = next(i for i, n in enumerate(graph.node) if n.output[0] == node.output[0])
    node = graph.node[where]
    real = [(i, name) for i, name in enumerate(node.input) if values[name].kind in places.FLOATS]
    for i, name in real:
        node.input[i] = f"{node.output[0]}.half.{i}"
        made = helper.make_node("Cast", [name], [node.input[i]], to=half)
        graph.node.insert(where, made)


def without_cast(graph: GraphProto, op: str, place: float) -> None:
    """Compute a node whose input was cast to float32 in the type before."""
    made = {node.output[0]: node for node in graph.node}
    found = [n for n in places.nodes(graph, op) if n.input[0] in made]
    found = places.need([n for n in found if made[n.input[0]].op_type == "Cast"])
    node = places.at(found, place)
    node.input[0] = made[node.input[0]].input[0]


def _value(graph: GraphProto, site: str, place: float) -> tuple[str, int]:
    """Find the name and the type of a value."""
    name = places.at(SITES[site](graph), place)
    return name, places.values(graph)[name].kind


def kinds() -> Iterator[tuple[str, str, Change]]:
    """Yield kind, place and change of every fault."""
    for site in SITES:
        for word, place in PLACES.items():
            for kind, change in _of_a_value(site, place):
                yield kind, f"{site} {word}", change
    for word, place in PLACES.items():
        for op in ("Softmax", "LayerNormalization", "Exp", "ReduceSum"):
            for name, half in HALVES.items():
                how = partial(in_half, op=op, place=place, half=half)
                yield f"{op} in {name}", word, how
        yield "Softmax without cast", word, partial(without_cast, op="Softmax", place=place)


def _of_a_value(site: str, place: float) -> Iterator[tuple[str, Change]]:
    for kind, steps in STEPS.items():
        yield f"value: {kind}", partial(round_value, site=site, place=place, steps=steps)
    for name, half in HALVES.items():
        yield f"value: {name}", partial(cast, site=site, place=place, half=half)
    half = HALVES["fp16"]
    yield "value: CastLike", partial(cast, site=site, place=place, half=half, like=True)
    yield "value: plus other", partial(plus_other, site=site, place=place)
    yield "value: where a pixel", partial(choose_by_pixel, site=site, place=place)
