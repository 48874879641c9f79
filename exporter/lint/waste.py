"""Rules on work and memory that change no result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from onnx import TensorProto

from exporter.graph.view import GraphView, attribute, dtype_name, operand, result
from exporter.lint.location import Spot, at_node, node_label
from exporter.lint.rule import rule
from exporter.lint.types import shape_values
from model.words import listed

_WASTE = 1024  # bytes of one weight that is stored again; less costs nothing worth reporting
_FLOAT_BITS: dict[int, tuple[int, int]] = {  # of exponent and mantissa
    TensorProto.FLOAT16: (5, 10),
    TensorProto.BFLOAT16: (8, 7),
    TensorProto.FLOAT: (8, 23),
    TensorProto.DOUBLE: (11, 52),
}
_INTEGER_BITS: dict[int, tuple[int, int]] = {  # of sign and magnitude
    TensorProto.BOOL: (0, 1),
    TensorProto.UINT4: (0, 4),
    TensorProto.INT4: (1, 3),
    TensorProto.UINT8: (0, 8),
    TensorProto.INT8: (1, 7),
    TensorProto.UINT16: (0, 16),
    TensorProto.INT16: (1, 15),
    TensorProto.UINT32: (0, 32),
    TensorProto.INT32: (1, 31),
    TensorProto.UINT64: (0, 64),
    TensorProto.INT64: (1, 63),
}


@rule(
    "repeated-weights",
    severity="warning",
    remedy="share one buffer between the modules, or deduplicate",
)
def repeated_weights(view: GraphView) -> Iterator[Spot]:
    """The same weight is stored several times.

    The file and the memory of the process grow by every copy. A table of positions that each block
    registers for itself is the usual cause. Weights below 1 kB are not reported.
    """
    copies: dict[tuple[int, tuple[int, ...], bytes], list[str]] = {}
    for name, tensor in view.constants.items():
        array = view.array(name)
        if array is not None and array.nbytes >= _WASTE:
            content = hashlib.sha256(array.tobytes()).digest()
            copies.setdefault((tensor.data_type, array.shape, content), []).append(name)
    for names in copies.values():
        if len(names) > 1:
            wasted = sum(array.nbytes for array in map(view.array, names[1:]) if array is not None)
            nodes = tuple(r.node for name in names for r in view.readers.get(name, ()))
            what = f"is stored {len(names)} times, {wasted:,} bytes too many: {listed(names)}"
            yield Spot(names[0], what, nodes)


@rule("cast-pair", severity="warning", remedy="remove the two casts: a runtime may keep them")
def cast_pair(view: GraphView) -> Iterator[Spot]:
    """A cast changes nothing, or undoes the cast before it.

    The values are read and written for no result, and the cast may keep a runtime from fusing the
    operators on both sides. A pair that rounds (float32 to float16 and back) is not reported: it
    changes the result, so a runtime must keep it. Casts of shapes are not reported either, because
    a runtime computes them once.
    """
    shapes = shape_values(view)
    for node in view.standard(("Cast",)):
        source, to = operand(node), attribute(node, "to")
        if result(node) in shapes:
            continue
        if view.kind(source) == to:
            yield at_node(node, f"is Cast of {dtype_name(to)} to itself")
            continue
        before = view.producers.get(source)
        if before is None or before.op_type != "Cast":
            continue
        first = view.kind(operand(before))
        if first == to and _holds(view.kind(source), first):
            through = f"{dtype_name(first)} by way of {dtype_name(view.kind(source))}"
            yield Spot(node_label(node), f"is Cast back to {through}", (node, before))


def _holds(wide: int, narrow: int) -> bool:
    """Whether every number of the narrow type is a number of the wide one.

    False for a type in no table. `np.can_cast` calls some casts safe that round: int64 to float64,
    and those of small floats.
    """
    if wide in _FLOAT_BITS and narrow in _INTEGER_BITS:
        return _INTEGER_BITS[narrow][1] <= _FLOAT_BITS[wide][1] + 1  # one bit is not stored
    for bits in (_FLOAT_BITS, _INTEGER_BITS):
        if wide in bits and narrow in bits:
            return all(w >= n for w, n in zip(bits[wide], bits[narrow], strict=True))
    return False
