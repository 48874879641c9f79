"""The kinds of faults, each at several places of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import fault_conditions
import fault_places as places
import fault_rounding
import fault_scales
import fault_structure
import numpy as np
from fault_places import PLACES, Change, add, scale
from onnx import GraphProto, TensorProto


def zero_row(array: np.ndarray) -> None:
    """Set the first row to zero."""
    array[0] = 0


def zero_column(array: np.ndarray) -> None:
    """Set the last column to zero."""
    array[..., -1] = 0


def swap_rows(array: np.ndarray) -> None:
    """Exchange the first row and the last."""
    array[[0, -1]] = array[[-1, 0]]


def swap_heads(array: np.ndarray) -> None:
    """Exchange the two halves of the columns, which are heads."""
    array[:] = np.roll(array, array.shape[-1] // 2, axis=-1)


def flip_one_sign(array: np.ndarray) -> None:
    """Flip the sign of the largest number."""
    array.flat[np.abs(array).argmax()] *= -1


def one_more(array: np.ndarray) -> None:
    """Change one number by a hundredth of the largest."""
    array.flat[array.size // 2] += 0.01 * np.abs(array).max() + (np.abs(array).max() > 20)


def add_noise(array: np.ndarray) -> None:
    """Add noise of a hundredth of the weight."""
    noise = np.random.default_rng(0).standard_normal(array.shape)
    array += 0.01 * array.std() * noise


def few_bits(array: np.ndarray) -> None:
    """Keep five bits of every number."""
    mantissa, exponent = np.frexp(array)
    array[:] = np.ldexp(np.rint(mantissa * 32) / 32, exponent)


def roll(array: np.ndarray) -> None:
    """Move everything by one place."""
    array[:] = np.roll(array, 1, axis=-1)


WEIGHTS = {
    "zero row": zero_row,
    "zero column": zero_column,
    "scale 1.01": partial(scale, 1.01),
    "scale 1.3": partial(scale, 1.3),
    "swapped rows": swap_rows,
    "swapped heads": swap_heads,
    "one sign": flip_one_sign,
    "one number": one_more,
    "noise": add_noise,
    "five bits": few_bits,
}
VECTORS = {"negated": partial(scale, -1.0), "plus 0.01": partial(add, 0.01), "rolled": roll}


def reversed_order(size: int) -> list[int]:
    """All entries from the last."""
    return list(range(size))[::-1]


def first_swapped(size: int) -> list[int]:
    """The first two exchanged."""
    return [*list(range(size))[1::-1], *range(2, size)]


def last_swapped(size: int) -> list[int]:
    """The last two exchanged."""
    return [*range(size - 2), size - 1, size - 2]


def last_repeated(size: int) -> list[int]:
    """The last entry is a copy of the one before."""
    return [*range(size - 1), size - 2]


def moved(size: int) -> list[int]:
    """All entries moved by one."""
    return [*range(1, size), 0]


def on_logits(graph: GraphProto, steps: tuple[places.Step, ...]) -> None:
    """Insert operators before the logits."""
    places.after(graph, graph.output[0].name, *steps)


def kinds() -> Iterator[tuple[str, str, Change]]:
    """Yield kind, place and change of every fault."""
    yield from _of_the_constants()
    for word, place in PLACES.items():
        for kind, change in _of_the_nodes(place):
            yield kind, word, change
    largest = partial(places.other_operator, op="ReduceMean", place=1.0, new="ReduceMax")
    yield "mean: maximum", "", largest
    yield from _of_the_clip()
    yield from _of_the_logits()
    for others in (fault_conditions, fault_scales, fault_rounding, fault_structure):
        yield from others.kinds()


def _of_the_constants() -> Iterator[tuple[str, str, Change]]:
    for kind, change in WEIGHTS.items():
        for word, place in PLACES.items():
            yield f"weight: {kind}", word, partial(places.edit_weight, place=place, change=change)
    for op in ("Add", "Mul", "LayerNormalization", "Concat", "Conv"):
        for kind, change in VECTORS.items():
            how = partial(places.edit_vector, op=op, place=0.5, change=change)
            yield f"constant: {kind}", op, how
    yield "head bias plus 0.01", "", partial(places.edit_head_bias, change=partial(add, 0.01))
    yield "head bias zero", "", partial(places.edit_head_bias, change=partial(scale, 0.0))


def _of_the_nodes(place: float) -> Iterator[tuple[str, Change]]:
    for value in (1e-3, 1e-6, 0.0):
        how = partial(places.set_attribute, op="LayerNormalization", place=place)
        yield f"norm: epsilon {value:g}", partial(how, name="epsilon", value=value)
    how = partial(places.set_attribute, op="Softmax", place=place)
    yield "softmax: other axis", partial(how, name="axis", value=-2)
    for kept in (0, 1):
        yield f"residual: term {kept} only", partial(places.drop_residual, place=place, kept=kept)
    yield "residual: scaled", partial(places.on_residual, place=place, steps=(("Mul", {}, 0.99),))
    yield (
        "residual: cut at zero",
        partial(places.on_residual, place=place, steps=(("Relu", {}, None),)),
    )
    how = partial(places.set_attribute, op="Gelu", place=place)
    yield "gelu: tanh", partial(how, name="approximate", value="tanh")
    for op, new in (("Gelu", "Relu"), ("Softmax", "Sigmoid")):
        yield f"{op} as {new}", partial(places.other_operator, op=op, place=place, new=new)


def _of_the_clip() -> Iterator[tuple[str, str, Change]]:
    orders = {
        "reversed": reversed_order,
        "first two swapped": first_swapped,
        "last two swapped": last_swapped,
        "last repeated": last_repeated,
        "moved": moved,
    }
    for axis, name in ((1, "frames"), (2, "channels"), (3, "rows"), (4, "columns")):
        for kind, order in orders.items():
            yield f"clip: {kind}", name, partial(places.gather_input, axis=axis, order=order)
    for word, place in {"first pixel": (0, 0, 0, 0), "last pixel": (-1, -1, -1, -1)}.items():
        yield "clip: a pixel + 0.001", word, partial(places.add_to_clip, place=place, amount=1e-3)
    yield "clip: scaled", "", partial(_clip, steps=(("Mul", {}, 1.01),))
    yield "clip: shifted", "", partial(_clip, steps=(("Add", {}, 0.01),))


def _clip(graph: GraphProto, steps: tuple[places.Step, ...]) -> None:
    places.before_input(graph, *steps)


def _of_the_logits() -> Iterator[tuple[str, str, Change]]:
    for factor in (1.001, 1.05):
        yield f"logits: scaled {factor:g}", "", partial(on_logits, steps=(("Mul", {}, factor),))
    yield "logits: shifted", "", partial(on_logits, steps=(("Add", {}, 0.01),))
    yield (
        "logits: rolled",
        "",
        partial(on_logits, steps=(("Gather", {"axis": 1}, [4, 0, 1, 2, 3]),)),
    )
    half, full = {"to": TensorProto.FLOAT16}, {"to": TensorProto.FLOAT}
    yield "logits: half", "", partial(on_logits, steps=(("Cast", half, None), ("Cast", full, None)))
