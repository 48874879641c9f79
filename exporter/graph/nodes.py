"""The hash of what a graph computes beside its weights: nodes, inputs, outputs and functions.

It is made of the fields and not of the bytes of the file, which protobuf may write in other ways.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    numpy_helper,
)


def hash_nodes(model: onnx.ModelProto) -> str:
    """Give the SHA-256 of a graph without its initializers, notes, and names of nodes."""
    found = hashlib.sha256()
    for text in _tell_model(model):
        found.update(f"{text}\n".encode())
    return found.hexdigest()


def _tell_model(model: onnx.ModelProto) -> Iterator[str]:
    for entry in model.opset_import:
        yield f"opset {entry.domain!r} {entry.version}"
    yield from _tell_graph(model.graph)
    for made in model.functions:
        yield f"function {made.domain!r} {made.name!r} {[*made.input]} {[*made.output]}"
        yield from (f"opset {entry.domain!r} {entry.version}" for entry in made.opset_import)
        yield f"attributes {[*made.attribute]}"
        for entry in made.attribute_proto:
            yield from _tell_attribute(entry)
        yield from _tell_nodes(made.node)


def _tell_graph(graph: GraphProto) -> Iterator[str]:
    yield from map(_tell_value, graph.input)
    yield from _tell_nodes(graph.node)
    yield from map(_tell_value, graph.output)
    for sparse in graph.sparse_initializer:
        yield from _tell_sparse(sparse)


def _tell_value(value: ValueInfoProto) -> str:
    kind = value.type.tensor_type
    axes = [dim.dim_value or dim.dim_param for dim in kind.shape.dim]
    return f"value {value.name!r} {kind.elem_type} {axes}"


def _tell_nodes(nodes: Iterable[NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield f"node {node.domain!r} {node.op_type!r} {[*node.input]} {[*node.output]}"
        for entry in sorted(node.attribute, key=lambda entry: entry.name):
            yield from _tell_attribute(entry)


def _tell_attribute(entry: AttributeProto) -> Iterator[str]:
    values = entry.f, entry.i, entry.s, [*entry.floats], [*entry.ints], [*entry.strings]
    yield f"attribute {entry.name!r} {entry.type} {entry.ref_attr_name!r} {values}"
    tensors = (*([entry.t] if entry.type == AttributeProto.TENSOR else []), *entry.tensors)
    yield from map(_tell_tensor, tensors)
    holds_sparse = entry.type == AttributeProto.SPARSE_TENSOR
    for sparse in (*([entry.sparse_tensor] if holds_sparse else []), *entry.sparse_tensors):
        yield from _tell_sparse(sparse)
    for graph in (*([entry.g] if entry.type == AttributeProto.GRAPH else []), *entry.graphs):
        yield from map(_tell_tensor, graph.initializer)
        yield from _tell_graph(graph)


def _tell_sparse(sparse: SparseTensorProto) -> Iterator[str]:
    yield f"sparse {sparse.values.name!r} {[*sparse.dims]}"
    yield from map(_tell_tensor, (sparse.values, sparse.indices))


def _tell_tensor(tensor: TensorProto) -> str:
    if tensor.data_type == TensorProto.STRING:
        content = str([*tensor.string_data])
    else:
        content = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()
    return f"tensor {tensor.name!r} {tensor.data_type} {[*tensor.dims]} {content}"
