"""An ONNX file of any origin -> a view of its graph, with the weights that can be read."""

from __future__ import annotations

import contextlib
from pathlib import Path

import onnx
import onnx.inliner

from exporter.errors import GraphInputError
from exporter.graph.view import GraphView, nested_graphs


def read_graph(path: Path) -> GraphView:
    """Read an ONNX file of any origin, with the weights that can be read.

    Raises:
        GraphInputError: if the file cannot be read, or has no graph in it.
    """
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise GraphInputError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # of protobuf, whose exceptions depend on its implementation
        raise GraphInputError(f"{path} is not an ONNX file: {error}") from error
    # An empty file, and many a file that is not ONNX, is a valid message of protobuf.
    if not (model.ir_version and model.graph.output):
        raise GraphInputError(f"{path} is not an ONNX file: there is no graph in it")
    if not _is_text(model):
        raise GraphInputError(f"{path} is damaged: a name in it is not text")
    with contextlib.suppress(Exception):  # `GraphView.missing` names what was not read
        onnx.load_external_data_for_model(model, str(path.parent))
    if model.functions:
        with contextlib.suppress(Exception):  # a function that cannot be inlined stays
            model = onnx.inliner.inline_local_functions(model)
    return GraphView(model)


def _is_text(model: onnx.ModelProto) -> bool:
    """Whether all names are UTF-8: for others protobuf gives bytes, or raises."""
    try:
        names = [o.domain for o in model.opset_import]
        for graph in nested_graphs(model.graph):
            names.append(graph.name)
            values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
            names += [value.name for value in values]
            for node in graph.node:
                names += [node.name, node.op_type, node.domain, *node.input, *node.output]
    except UnicodeDecodeError:
        return False
    return all(isinstance(name, str) for name in names)
