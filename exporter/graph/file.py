"""An ONNX file of any origin -> a graph to look at, with its weights where they are there."""

from __future__ import annotations

import contextlib
from pathlib import Path

import onnx
import onnx.inliner

from exporter.errors import GraphInputError
from exporter.graph.view import GraphView, nested_graphs


def read_graph(path: Path) -> GraphView:
    """Read an ONNX file of any origin, with its weights where they are there.

    Raises:
        GraphInputError: if there is no such file, or no graph in it.
    """
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise GraphInputError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # protobuf's own, which depend on its implementation
        raise GraphInputError(f"{path} is not an ONNX file: {error}") from error
    if not (model.ir_version and model.graph.output):  # many bytes, and no bytes, are a message
        raise GraphInputError(f"{path} is not an ONNX file: there is no graph in it")
    if not _is_text(model):
        raise GraphInputError(f"{path} is damaged: a name in it is not text")
    with contextlib.suppress(Exception):  # what is not there is told by `GraphView.missing`
        onnx.load_external_data_for_model(model, str(path.parent))
    if model.functions:
        with contextlib.suppress(Exception):  # what cannot be written out stays a call
            model = onnx.inliner.inline_local_functions(model)
    return GraphView(model)


def _is_text(model: onnx.ModelProto) -> bool:
    """Whether all names are text: protobuf gives bytes, or raises, for those that are not UTF-8."""
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
