"""Faults of int8 graphs: scales and zero points of activations, steps of weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import fault_places as places
import numpy as np
from fault_places import PLACES, Change, add, scale
from onnx import GraphProto, TensorProto, helper

from exporter.graph.weights import find_stored


def edit_scale(graph: GraphProto, place: float, factor: float) -> None:
    """Change the scale with which activations are rounded to 8 bits."""
    names = dict.fromkeys(node.input[1] for node in places.nodes(graph, "QuantizeLinear"))
    name = places.at(list(names), place)
    places.edit(places.constant(graph, name), partial(scale, factor))


def edit_zero(graph: GraphProto, place: float) -> None:
    """Move the zero of rounded activations, where they are read again, by five steps."""
    node = places.at(places.nodes(graph, "QuantizeLinear"), place)
    if len(node.input) < 3:
        raise places.NotHereError
    tensor = places.copy_constant(graph, node, 2)
    places.edit(tensor, partial(add, 5 if tensor.data_type == TensorProto.UINT8 else -5))


def other_scale(graph: GraphProto, place: float, *, both: bool) -> None:
    """Round activations with scale and zero of others; `both` restores them with these too."""
    rounding = places.nodes(graph, "QuantizeLinear")
    node = places.at(rounding, place)
    other = places.need([one for one in rounding if one.input[1] != node.input[1]])[0]
    readers = [n for n in places.nodes(graph, "DequantizeLinear") if n.input[0] == node.output[0]]
    for one in [node, *(readers if both else ())]:
        one.input[1:] = other.input[1:]


def edit_steps(graph: GraphProto, place: float, factor: float) -> None:
    """Change the step of the largest row of a stored weight."""

    def change(array: np.ndarray) -> None:
        array.flat[np.abs(array).argmax()] *= factor

    places.edit(places.constant(graph, places.at(_steps(graph), place)), change)


def swap_steps(graph: GraphProto, place: float) -> None:
    """Exchange the steps of a stored weight and of another with as many."""
    names = _steps(graph)
    one = places.constant(graph, places.at(names, place))
    found = [places.constant(graph, name) for name in names]
    places.swap(
        one, places.need([o for o in found if o.dims == one.dims and o.name != one.name])[0]
    )


def weight_zero(graph: GraphProto, place: float) -> None:
    """Move the zero of a stored weight by one step."""
    weights = {tensor.name for tensor in graph.initializer}
    restored = (n for n in places.nodes(graph, "DequantizeLinear") if n.input[0] in weights)
    node = places.at(places.need([n for n in restored if len(n.input) > 2]), place)
    places.edit(places.copy_constant(graph, node, 2), partial(add, 1))


def _steps(graph: GraphProto) -> list[str]:
    """Name the steps of each stored weight."""
    stored = find_stored(helper.make_model(graph))
    return places.need(list(dict.fromkeys(one.scale for one in stored)))


def kinds() -> Iterator[tuple[str, str, Change]]:
    """Yield kind, place and change of every fault."""
    for word, place in PLACES.items():
        for factor in (1.3, 0.5):
            yield f"int8: scale {factor:g}", word, partial(edit_scale, place=place, factor=factor)
        yield "int8: zero point", word, partial(edit_zero, place=place)
        yield "int8: other scale", word, partial(other_scale, place=place, both=False)
        yield "int8: other rounding", word, partial(other_scale, place=place, both=True)
        for factor in (1.01, 2.0):
            yield f"int8: step {factor:g}", word, partial(edit_steps, place=place, factor=factor)
        yield "int8: steps swapped", word, partial(swap_steps, place=place)
        yield "int8: zero of weight", word, partial(weight_zero, place=place)
