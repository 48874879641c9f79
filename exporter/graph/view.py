"""A view of a graph: type and shape of every value, the node that makes it and those that read it.

It is made for graphs of any origin: what is unknown is absent or `None`, never an exception.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from exporter.graph.inference import infer, refusal, with_shapes
from exporter.graph.modules import innermost_module, modules_of_values

Shape = tuple[int | str | None, ...]  # a number, the name of a free axis, or unknown

STANDARD = ("", "ai.onnx")  # the names of the domain of standard operators
# The batch at which shapes are inferred: a prime, so that only an axis with the batch in it is a
# multiple of it.
PROBE_BATCH = 10007
_READ_BY_INFERENCE = 1024  # elements; a weight that is used as a shape is never larger


@dataclass(frozen=True)
class GraphTensor:
    """One input or output; a free axis is given by its name, or `None` if it has none."""

    name: str
    dtype: str
    shape: Shape


class Value(NamedTuple):
    """The element type of a value (of `onnx.TensorProto`, 0 where unknown) and its shape."""

    kind: int
    shape: Shape | None


class Reader(NamedTuple):
    """A node that reads a value, and the position of that input."""

    node: onnx.NodeProto
    position: int


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for shape inference: weights that are large, or could not be read, become inputs."""
    # Before version 4 weights are inputs too, which the copy leaves out.
    version = max(model.ir_version, 4)
    light = onnx.ModelProto(ir_version=version, opset_import=model.opset_import)
    weights = {weight.name: weight for weight in model.graph.initializer}
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(value for value in model.graph.input if value.name not in weights)
    light.graph.output.extend(model.graph.output)
    for weight in weights.values():
        here = weight.data_location != onnx.TensorProto.EXTERNAL
        if here and math.prod(weight.dims) <= _READ_BY_INFERENCE:
            light.graph.initializer.append(weight)
        else:
            described = (weight.name, weight.data_type, weight.dims)
            light.graph.input.append(onnx.helper.make_tensor_value_info(*described))
    return light


@dataclass(frozen=True, eq=False)
class GraphView:
    """One model, with indices that are made at their first use."""

    model: onnx.ModelProto

    @cached_property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        """All nodes, those in branches and loops too."""
        return tuple(node for graph in self._graphs for node in graph.node)

    def standard(self, ops: Collection[str]) -> Iterator[onnx.NodeProto]:
        """Yield the nodes of these operators of the standard: a runtime may reuse their names."""
        return (node for node in self.nodes if node.op_type in ops and node.domain in STANDARD)

    @cached_property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """The inputs of a run; older files list their weights as inputs too."""
        weights = {weight.name for weight in self.model.graph.initializer}
        return tuple(v for v in self.model.graph.input if v.name not in weights)

    @cached_property
    def opsets(self) -> Mapping[str, int]:
        """The version of each domain of operators; the standard domain is the empty string."""
        versions = {entry.domain: entry.version for entry in self.model.opset_import}
        return {"" if domain in STANDARD else domain: n for domain, n in versions.items()}

    @cached_property
    def weights(self) -> Mapping[str, onnx.TensorProto]:
        """All initializers, those of branches and loops too."""
        return {weight.name: weight for graph in self._graphs for weight in graph.initializer}

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """The names of weights whose content is in a file that could not be read."""
        outside = onnx.TensorProto.EXTERNAL
        return tuple(n for n, weight in self.weights.items() if weight.data_location == outside)

    @cached_property
    def constants(self) -> Mapping[str, onnx.TensorProto]:
        """Readable values that are the same in every run: weights and outputs of `Constant`."""
        found = {name: w for name, w in self.weights.items() if name not in self.missing}
        for node in self.nodes:
            if node.op_type == "Constant" and node.output:
                found |= {node.output[0]: a.t for a in node.attribute if a.name == "value"}  # noqa: B035
        return found

    @cached_property
    def producers(self) -> Mapping[str, onnx.NodeProto]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def readers(self) -> Mapping[str, tuple[Reader, ...]]:
        """The nodes that read each value; a value that no node reads is absent."""
        found: dict[str, list[Reader]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.input):
                found.setdefault(name, []).append(Reader(node, position))
        return {name: tuple(readers) for name, readers in found.items()}

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """Type and shape of each value, as declared in the file or inferred."""
        declared = without_weights(self.model)
        declared.graph.value_info.extend(self.model.graph.value_info)
        weights = {n: Value(w.data_type, tuple(w.dims)) for n, w in self.weights.items()}
        return _values(_inferred(declared) or declared) | weights

    @cached_property
    def contradiction(self) -> str:
        """The error of ONNX's checker, or of its inference of types and shapes; empty if none."""
        light = without_weights(self.model)
        try:
            onnx.checker.check_model(with_shapes(light))
        except Exception as error:  # the C++ checker raises several unrelated classes
            return str(error)
        return refusal(light)

    @cached_property
    def batch(self) -> Shape | None:
        """The first axis of the first input, as a shape of one axis; `None` if there is none."""
        shape = _shape(self.inputs[0]) if self.inputs else None
        return shape[:1] if shape else None

    @cached_property
    def values_at_probe(self) -> Mapping[str, Value]:
        """The same at a batch of `PROBE_BATCH`; empty if the graph does not take that batch."""
        return _values(_inferred(self._at_probe()) or onnx.ModelProto())

    @cached_property
    def contradiction_at_probe(self) -> str:
        """The error of the inference of shapes at a batch of `PROBE_BATCH`; empty if none."""
        return refusal(self._at_probe())

    def kind(self, name: str) -> int:
        """The element type of a value, 0 where it is unknown."""
        return self.values[name].kind if name in self.values else onnx.TensorProto.UNDEFINED

    def array(self, name: str) -> np.ndarray | None:
        """The content of a constant; `None` if the value is not constant, or cannot be read."""
        if name not in self.constants:
            return None
        try:
            return numpy_helper.to_array(self.constants[name])
        except Exception:  # a damaged weight raises as many exceptions as there are encodings
            return None

    def integers(self, name: str) -> list[int] | None:
        """The content of a constant of integers (a shape, axes); `None` for any other value."""
        array = self.array(name)
        return array.ravel().tolist() if array is not None and array.dtype.kind == "i" else None

    def module(self, node: onnx.NodeProto) -> str | None:
        """The path of the module that a node is in; `None` if unknown.

        A node without a note is put into the module of the first node with a note among those
        that follow it, else of one that precedes it.
        """
        if (path := self._told.get(result(node))) is not None:
            return path
        makers = (self.producers[name] for name in node.input if name in self.producers)
        return next((path for path in map(innermost_module, makers) if path is not None), None)

    @cached_property
    def _told(self) -> Mapping[str, str]:
        return modules_of_values(self.model, self.nodes)

    def _at_probe(self) -> onnx.ModelProto:
        """The graph at a batch of `PROBE_BATCH`, without the shapes that the file declares."""
        light = without_weights(self.model)
        names = {value.name for value in self.inputs}
        for value in light.graph.input:
            dims = value.type.tensor_type.shape.dim
            if value.name in names and dims and _axis(dims[0]) == (self.batch or (0,))[0]:
                dims[0].dim_value = PROBE_BATCH
        for value in light.graph.output:
            value.type.tensor_type.ClearField("shape")
        return light

    @cached_property
    def _graphs(self) -> tuple[onnx.GraphProto, ...]:
        return tuple(nested_graphs(self.model.graph))


def graph_tensor(value: onnx.ValueInfoProto) -> GraphTensor:
    """Name, type and shape of an input or output; no axes if the file gives no shape."""
    kind = dtype_name(value.type.tensor_type.elem_type)
    return GraphTensor(value.name, kind, _shape(value) or ())


def operand(node: onnx.NodeProto, position: int = 0) -> str:
    """The name of an input of a node; empty if it has none at that position."""
    return node.input[position] if position < len(node.input) else ""


def result(node: onnx.NodeProto) -> str:
    """The name of the first output of a node; empty if it has none."""
    return node.output[0] if node.output else ""


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of an attribute of a node."""
    found = (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)
    return next(found, default)


def dtype_name(kind: object) -> str:
    """The name of an element type, as numpy writes it."""
    known = onnx.TensorProto.DataType.items()
    name = next((name for name, number in known if number == kind), f"type {kind}").lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Types and shapes as far as they can be inferred."""
    with contextlib.suppress(Exception):  # a graph that is not valid has no inferred shapes
        return infer(model)
    return None


def _values(model: onnx.ModelProto) -> dict[str, Value]:
    return {
        value.name: Value(value.type.tensor_type.elem_type, _shape(value))
        for graph in nested_graphs(model.graph)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    kind = value.type.tensor_type
    return tuple(map(_axis, kind.shape.dim)) if kind.HasField("shape") else None


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def nested_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those of its branches and loops."""
    yield graph
    for node in graph.node:
        for entry in node.attribute:
            for inner in subgraphs(entry):
                yield from nested_graphs(inner)


def subgraphs(entry: onnx.AttributeProto) -> Iterable[onnx.GraphProto]:
    """The graphs in an attribute of a node: a branch, or the body of a loop."""
    return [entry.g] if entry.type == onnx.AttributeProto.GRAPH else entry.graphs
