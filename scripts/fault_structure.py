"""Faults of how a graph is put together: inputs, indices, axes, constants, operators, edges."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import fault_places as places
import numpy as np
from fault_places import PLACES, Change, add, scale
from onnx import GraphProto


def swap_inputs(graph: GraphProto, op: str, place: float) -> None:
    """Exchange the first two inputs of a node."""
    node = places.at(places.nodes(graph, op), place)
    if len(node.input) < 2:
        raise places.NotHereError
    node.input[0], node.input[1] = node.input[1], node.input[0]


def edit_index(graph: GraphProto, place: float, change: places.Edit) -> None:
    """Change the constant that says what a Gather takes."""
    known = {tensor.name for tensor in graph.initializer}
    found = [node for node in places.nodes(graph, "Gather") if node.input[1] in known]
    node = places.at(places.need(found), place)
    places.edit(places.copy_constant(graph, node, 1), change)


def reverse(array: np.ndarray) -> None:
    """Take the entries from the last."""
    array[...] = np.flip(array)


def transpose_other(graph: GraphProto, place: float) -> None:
    """Exchange two axes of equal size in a transposition."""
    node = places.at(places.nodes(graph, "Transpose"), place)
    shape = places.shape(graph, node.output[0])
    axes = [(i, j) for j in range(len(shape)) for i in range(j) if shape[i] == shape[j] != 1]
    i, j = places.need(axes)[-1]
    (perm,) = (entry.ints for entry in node.attribute if entry.name == "perm")
    perm[i], perm[j] = perm[j], perm[i]


def mix_axes(graph: GraphProto, place: float) -> None:
    """Read two neighbouring axes behind a reshape in the order of the other."""
    name = places.at(places.nodes(graph, "Reshape"), place).output[0]
    shape = places.shape(graph, name)
    order = list(range(len(shape)))
    i = places.need([i for i in order[:-1] if shape[i] > 1 and shape[i + 1] > 1])[-1]
    order[i], order[i + 1] = order[i + 1], order[i]
    places.after(graph, name, ("Transpose", {"perm": order}, None), ("Reshape", {}, shape))


def swap_vectors(graph: GraphProto, op: str, place: float) -> None:
    """Exchange two constants of one shape that nodes of an operator read."""
    found = places.vectors(graph, op)
    one = places.at(found, place)
    alike = [o for o in found if o.dims == one.dims and o.data_type == one.data_type]
    places.swap(one, places.need([other for other in alike if other.name != one.name])[0])


def read_earlier(graph: GraphProto, place: float) -> None:
    """Read the sum before in place of a sum."""
    known = places.values(graph)
    names = [node.output[0] for node in places.residuals(graph)]
    pairs = [(a, b) for i, b in enumerate(names) for a in names[:i] if known[a] == known[b]]
    earlier, name = places.at(places.need(pairs), place)
    node = next(node for node in graph.node if name in node.input)
    node.input[:] = [earlier if given == name else given for given in node.input]


def edit_number(graph: GraphProto, place: float) -> None:
    """Change a constant of one number by a hundredth."""
    places.edit(places.at(places.numbers(graph), place), partial(scale, 1.01))


def drop_bias(graph: GraphProto, place: float) -> None:
    """Leave the bias of a norm out."""
    node = places.at(places.nodes(graph, "LayerNormalization"), place)
    places.edit(places.copy_constant(graph, node, 2), partial(scale, 0.0))


def kinds() -> Iterator[tuple[str, str, Change]]:
    """Yield kind, place and change of every fault."""
    for word, place in PLACES.items():
        for op in ("Sub", "Div", "Concat"):
            yield f"{op}: inputs swapped", word, partial(swap_inputs, op=op, place=place)
        for kind, change in (("one off", partial(add, 1)), ("reversed", reverse)):
            yield f"Gather: index {kind}", word, partial(edit_index, place=place, change=change)
        for op in ("Add", "Mul", "LayerNormalization"):
            yield f"{op}: constants swapped", word, partial(swap_vectors, op=op, place=place)
        yield "transpose: equal axes", word, partial(transpose_other, place=place)
        yield "reshape: axes mixed", word, partial(mix_axes, place=place)
        yield "residual: the one before", word, partial(read_earlier, place=place)
        yield "number times 1.01", word, partial(edit_number, place=place)
        how = partial(places.other_operator, op="ReduceMean", place=place, new="ReduceSum")
        yield "mean: sum", word, how
        yield "norm: no bias", word, partial(drop_bias, place=place)
