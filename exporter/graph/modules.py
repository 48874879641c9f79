"""Which values of a graph are the outputs of which PyTorch modules.

The exporter of torch notes on every node the modules it was traced in. What leaves a module is what
a node in it makes and a node outside reads. The map is written into the file as values' names,
which outlive later changes of the graph (as quantisation), where notes on nodes do not.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_MODULES = "tsformer.modules"


def find_module_outputs(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """The values that leave each module, by its path, in the order they are made."""
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
    """Note the map in the metadata of a freshly exported model."""
    outputs = find_module_outputs(model.graph)
    text = json.dumps(outputs, sort_keys=True, separators=(",", ":"))
    model.metadata_props.add(key=_MODULES, value=text)


def read_module_outputs(model: onnx.ModelProto) -> Mapping[str, list[str]]:
    """The map noted in a model, as far as its values are still there."""
    noted = {entry.key: entry.value for entry in model.metadata_props}.get(_MODULES, "{}")
    values = {name for node in model.graph.node for name in node.output}
    return {
        path: [name for name in names if name in values]
        for path, names in json.loads(noted).items()
    }


def module_scopes(node: onnx.NodeProto) -> frozenset[str]:
    """The paths of the modules a node stands in; its own operator is the last entry noted."""
    return frozenset(_noted_scopes(node)[1:-1])


def innermost_module(node: onnx.NodeProto) -> str | None:
    """The path of the module that made a node, as either exporter of torch tells it.

    Returns:
        The path, empty for the model itself; `None` if nothing tells.
    """
    noted = _noted_scopes(node)
    if len(noted) > 1:
        return noted[-2]
    if node.name.startswith("/"):  # without dynamo: /blocks.0/attn_t/Einsum
        return ".".join(node.name.split("/")[1:-1])
    return None


def modules_of_values(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, str]:
    """The innermost module each value is made in, where anything tells it.

    A node that tells nothing, in its notes or in the map of the model, is taken to stand where the
    first node behind it does that tells.
    """
    told = {name: path for path, names in _by_depth(model) for name in names}
    behind: dict[str, str] = {}  # by value, the module of who reads it
    for node in reversed(nodes):  # whoever reads a value stands behind it
        paths = (innermost_module(node), *map(told.get, node.output), *map(behind.get, node.output))
        path = next((path for path in paths if path is not None), None)
        if path is not None:
            told |= dict.fromkeys(node.output, path)
            behind |= dict.fromkeys(node.input, path)
    return told


def _by_depth(model: onnx.ModelProto) -> list[tuple[str, list[str]]]:
    """The map noted in a model, the innermost modules last."""
    try:
        return sorted(read_module_outputs(model).items(), key=lambda entry: len(entry[0]))
    except (ValueError, AttributeError, TypeError):  # a note of that name by someone else
        return []


def _noted_scopes(node: onnx.NodeProto) -> list[str]:
    notes = {entry.key: entry.value for entry in node.metadata_props}
    try:
        scopes = ast.literal_eval(notes.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # foreign text
        return []
    return list(map(str, scopes)) if isinstance(scopes, list) else []
