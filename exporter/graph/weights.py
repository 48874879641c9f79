"""The weights of a graph: their hashes, those stored as integers, and those that no model holds.

What rounds values is hashed with them, and named where no export makes it: structure takes rounding
out, so that no fault of structure shows it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from exporter.graph.nodes import hash_nodes
from exporter.graph.view import GraphView

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
# The types of numbers, indices and conditions: a cast to them is a part of the function.
WHOLE = (
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    *(TensorProto.BOOL, TensorProto.STRING),
)
_HASH = 16  # digits of a hash
_NOTHING = 127 * float(np.finfo(np.float32).tiny)  # no step of float32 holds a weight below
_CASTS = ""  # the entry of hashes that says that casts are among them: no value has that name
_NODES = "(nodes)"  # the entry of hashes with that of all nodes
LEAST_STEP = 2.0**-24  # the least number of fp16: a channel of such steps holds fp16 exactly
_LEAST_LEVEL = 62  # the largest weight of a channel has the level 63, 64 or 127, see `quantize`


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight that a graph stores as integers.

    Attributes:
        name: The initializer with the integers.
        values: Integers times steps, in float64.
        steps: The size of a step, of a shape that fits `values`.
        scale: The initializer with the steps.
    """

    name: str
    values: np.ndarray
    steps: np.ndarray
    scale: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes longer than 1."""
        return tuple(size for size in self.values.shape if size != 1)

    def spans(self, values: np.ndarray) -> bool:
        """Whether the steps are small enough for the largest of these values in each channel."""
        within = self.steps.shape or (1,) * values.ndim
        axes = tuple(axis for axis, size in enumerate(within) if size == 1)
        largest = np.abs(values).max(axes, keepdims=True)
        fine = (largest >= _LEAST_LEVEL * self.steps) | (self.steps == LEAST_STEP)
        return bool((fine | (largest <= _NOTHING)).all())


def find_stored(model: onnx.ModelProto) -> list[Stored]:
    """Find the weights stored as integers: read by `DequantizeLinear`, or by `Cast` and `Mul`."""
    arrays = {weight.name: weight for weight in model.graph.initializer}
    readers = {name: node for node in model.graph.node for name in node.input}
    found = []
    for node in model.graph.node:
        levels = arrays.get(node.input[0]) if node.input else None
        if levels is None or levels.data_type in FLOATS:
            continue
        if node.op_type == "DequantizeLinear":
            values = numpy_helper.to_array(levels).astype(np.float64)
            steps = along_axis(node, 1, arrays, values.ndim)
            zero = along_axis(node, 2, arrays, values.ndim) if len(node.input) > 2 else 0.0
            found.append(Stored(levels.name, (values - zero) * steps, steps, node.input[1]))
        elif node.op_type == "Cast" and node.output[0] in readers:
            scaled = readers[node.output[0]]
            scale = next((name for name in scaled.input if name in arrays), None)
            if scaled.op_type == "Mul" and scale is not None:
                steps = numpy_helper.to_array(arrays[scale]).astype(np.float64)
                values = numpy_helper.to_array(levels) * steps
                found.append(Stored(levels.name, values, steps, scale))
    return found


def along_axis(
    node: onnx.NodeProto, place: int, arrays: Mapping[str, TensorProto], rank: int
) -> np.ndarray:
    """Give an input of Q or DQ in float64, laid along the axis that it belongs to."""
    array = numpy_helper.to_array(arrays[node.input[place]]).astype(np.float64)
    if array.ndim != 1 or array.size == 1:
        return array.reshape(())
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
    shape = [1] * rank
    shape[axis] = array.size
    return array.reshape(shape)


def coarse_weights(model: onnx.ModelProto) -> tuple[str, ...]:
    """Name the stored weights with a channel whose steps are too large for its largest weight."""
    return tuple(one.name for one in find_stored(model) if not one.spans(one.values))


def foreign_casts(model: onnx.ModelProto, precision: str) -> tuple[str, ...]:
    """Name the values that are cast to a real type which a precision does not have.

    Args:
        model: A graph.
        precision: That in which its model was traced: `fp32`, `fp16` or `bf16`.
    """
    lower = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}.get(precision)
    known = {TensorProto.FLOAT, TensorProto.DOUBLE, lower}
    return tuple(node.output[0] for node, kind in _casts(model) if kind not in known)


def casts_outside(model: onnx.ModelProto, modules: Collection[str]) -> tuple[str, ...]:
    """Name the values that are cast to half precision outside of the modules that compute in it.

    Where most modules stay in float32, the tolerance of the precision has room for such a cast.

    Args:
        model: A graph.
        modules: The paths of these modules.
    """
    view, inside = GraphView(model), tuple(f"{path}." for path in modules)
    return tuple(
        node.output[0]
        for node, kind in _casts(model)
        if kind in FLOATS[1:] and not f"{view.module(node)}.".startswith(inside)
    )


def hash_weights(model: onnx.ModelProto) -> dict[str, str]:
    """Give the first digits of the SHA-256 of each initializer: of its type, shape and values.

    Beside these each value that is rounded to 8 bits has the hashes of its scale and zero point,
    and each value that is cast to a real type has that type. One hash is that of all nodes: what
    they compute in float64, on the inputs of a proof, does not show all that they do.
    """
    weights = {weight.name: _digest(weight) for weight in model.graph.initializer}
    rounded = {
        node.output[0]: " ".join(weights.get(name, name) for name in node.input[1:])
        for node in _rounding(model)
    }
    casts = {node.output[0]: f"{node.input[0]} as {kind}" for node, kind in _casts(model)}
    return weights | rounded | casts | {_CASTS: "", _NODES: hash_nodes(model)[:_HASH]}


def changed_weights(model: onnx.ModelProto, expected: Mapping[str, str]) -> list[str]:
    """List what was changed, added or removed since it was hashed."""
    got = hash_weights(model)
    left_out = {_NODES} - expected.keys()  # of an older version, which did not hash them
    if _CASTS not in expected:  # of one still older
        left_out |= {_CASTS, *(node.output[0] for node, _ in _casts(model))}
        rounded = {node.output[0] for node in _rounding(model)}
        if rounded.isdisjoint(expected):  # of the first, which hashed initializers alone
            left_out |= rounded
    got = {name: digest for name, digest in got.items() if name not in left_out}
    return sorted(name for name in {*got, *expected} if got.get(name) != expected.get(name))


def _rounding(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "QuantizeLinear"]


def _casts(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, int]]:
    """List the casts to real types, each with its type."""
    return [
        (node, entry.i)
        for node in model.graph.node
        for entry in node.attribute
        if node.op_type == "Cast" and entry.name == "to" and entry.i not in WHOLE
    ]


def set_weights(graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> None:
    """Replace the initializers by those of `weights` that a node reads."""
    read = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(weight for name, weight in weights.items() if name in read)


class Values:
    """The values of some tensors, without regard to their order, or to how often each occurs.

    A graph holds weights transposed, cut and repeated. Tensors of one value are constants of
    formulas, which everything holds.
    """

    def __init__(self, tensors: Iterable[np.ndarray]) -> None:
        self._tensors = [array for array in tensors if array.size > 1]
        self._known = {_multiset(array) for array in self._tensors}

    def __contains__(self, array: np.ndarray) -> bool:
        if array.size <= 1 or _multiset(array) in self._known:
            return True
        return _multiset(np.unique(array)) in self._sets

    @cached_property
    def _sets(self) -> set[tuple[int, int]]:
        return {_multiset(np.unique(array)) for array in self._tensors}


def real_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Give the initializers of real numbers in float32, without the steps of stored weights."""
    apart = {one.scale for one in find_stored(model)}
    return {
        weight.name: numpy_helper.to_array(weight).astype(np.float32)
        for weight in model.graph.initializer
        if weight.data_type in FLOATS and weight.name not in apart
    }


def real_numbers(model: onnx.ModelProto) -> dict[str, float]:
    """Give the initializers of one real number, without the scales of values of 8 bits."""
    scales = {
        name
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }
    numbers = {name: array for name, array in real_weights(model).items() if array.size == 1}
    return {name: array.item() for name, array in numbers.items() if name not in scales}


def _multiset(array: np.ndarray) -> tuple[int, int]:
    """Hash float32 values without regard to their order."""
    bits = np.ravel(array + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 is 0
    bits *= np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(29)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(32)
    return array.size, int(bits.sum(dtype=np.uint64))


def _digest(weight: TensorProto) -> str:
    array = numpy_helper.to_array(weight)
    head = f"{weight.data_type} {array.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:_HASH]
