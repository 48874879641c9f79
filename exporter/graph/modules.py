"""Which values of a graph are the outputs of which PyTorch modules.

The exporter of torch writes into the metadata of every node the modules that it was traced in. An
output of a module is a value that a node in the module makes and a node outside of it reads. The
map is written into the file by names of values, because those survive later changes of the graph
(quantisation for example), and metadata of nodes does not.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_MODULES = "tsformer.modules"
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"  # torch: of a node without a module


def find_module_outputs(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """The outputs of each module, by its path, in the order they are made."""
    scopes = [module_scopes(node) for node in graph.node]
    readers: dict[str, list[frozenset[str]]] = {
        output.name: [frozenset()] for output in graph.output
    }
    for node, own in zip(graph.node, scopes, strict=True):
        for name in node.input:
            readers.setdefault(name, []).append(own)
    found: dict[str, list[str]] = {}
    for node, own in zip(graph.node, scopes, strict=True):
        for name in node.output:
            inside = frozenset.intersection(*readers.get(name, [own]))
            for path in own - inside:
                found.setdefault(path, []).append(name)
    return found


def write_module_outputs(model: onnx.ModelProto) -> None:
    """Write the map into the metadata of a model that was just exported."""
    outputs = find_module_outputs(model.graph)
    text = json.dumps(outputs, sort_keys=True, separators=(",", ":"))
    model.metadata_props.add(key=_MODULES, value=text)


def read_module_outputs(model: onnx.ModelProto) -> Mapping[str, list[str]]:
    """The map in the metadata of a model, without values that the graph no longer has."""
    noted = {entry.key: entry.value for entry in model.metadata_props}.get(_MODULES, "{}")
    values = {name for node in model.graph.node for name in node.output}
    return {
        path: [name for name in names if name in values]
        for path, names in json.loads(noted).items()
    }


def module_scopes(node: onnx.NodeProto) -> frozenset[str]:
    """The paths of the modules that a node is in."""
    return frozenset(_noted_scopes(node)[1:-1])  # the first is the model, the last the operator


def innermost_module(node: onnx.NodeProto) -> str | None:
    """The path of the innermost module that a node is in, as either exporter of torch writes it.

    Returns:
        The path, empty for the model itself; `None` if the node has no such note.
    """
    noted = _noted_scopes(node)
    if len(noted) > 1:
        return noted[-2]
    if node.name.startswith("/"):  # without dynamo: /blocks.0/attn_t/Einsum
        return ".".join(node.name.split("/")[1:-1])
    return None


def modules_of_values(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, str]:
    """The innermost module in which each value is made, as far as it is known.

    A node without a note, in its metadata or in the map of the model, is put into the module of
    the first node with a note among those that follow it.
    """
    told = {name: path for path, names in _by_depth(model) for name in names}
    readers: dict[str, str] = {}  # by value, the module of a node that reads it
    for node in reversed(nodes):  # the readers of a value follow its maker
        paths = (
            innermost_module(node),
            *map(told.get, node.output),
            *map(readers.get, node.output),
        )
        path = next((path for path in paths if path is not None), None)
        if path is not None:
            told |= dict.fromkeys(node.output, path)
            readers |= dict.fromkeys(node.input, path)
    return told


def _by_depth(model: onnx.ModelProto) -> list[tuple[str, list[str]]]:
    """The map in the metadata of a model, the innermost modules last."""
    try:
        return sorted(read_module_outputs(model).items(), key=lambda entry: len(entry[0]))
    except (ValueError, AttributeError, TypeError, RecursionError):  # of another program
        return []


def _noted_scopes(node: onnx.NodeProto) -> list[str]:
    notes = {entry.key: entry.value for entry in node.metadata_props}
    try:
        scopes = ast.literal_eval(notes.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # foreign text
        return []
    if not isinstance(scopes, list) or _NO_MODULE in scopes:
        return []
    return list(map(str, scopes))
