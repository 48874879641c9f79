"""An ONNX file of any origin -> a view of its graph, with the weights that can be read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx.inliner

from exporter.errors import GraphInputError
from exporter.files.text import require_regular
from exporter.graph.view import GraphView, nested_graphs, subgraphs

_GIVE = "give a file that an ONNX exporter wrote, or a directory that tsformer export made"
MOST_DEPTH = 8  # of graphs in graphs
MOST_NODES = 200_000  # of a graph whose functions are unfolded


def read_graph(path: Path) -> GraphView:
    """Read an ONNX file of any origin, with the weights that can be read.

    Raises:
        GraphInputError: if the file cannot be read, has no graph in it, or has weights in what is
            no file.
    """
    try:
        require_regular(path)
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise GraphInputError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # of protobuf, whose exceptions depend on its implementation
        what = f"{path} is not an ONNX file: {error}"
        raise GraphInputError(what, remedy=_GIVE) from error
    # An empty file, and many a file that is not ONNX, is a valid message of protobuf.
    if not (model.ir_version and (model.graph.output or model.graph.node)):
        raise GraphInputError(f"{path} is not an ONNX file: there is no graph in it", remedy=_GIVE)
    if not _is_text(model):
        raise GraphInputError(f"{path} is damaged: a name in it is not text")
    _check_outside(path, model)
    with contextlib.suppress(Exception):  # `GraphView.missing` names what was not read
        onnx.load_external_data_for_model(model, str(path.parent))
    _check_depth(path, model)
    if model.functions:
        _check_unfolded(path, model)
        with contextlib.suppress(Exception):  # a function that cannot be inlined stays
            model = onnx.inliner.inline_local_functions(model)
    return GraphView(model)


def _check_outside(path: Path, model: onnx.ModelProto) -> None:
    """Refuse pipes and devices in place of files with weights: every reader waits for them.

    Raises:
        GraphInputError: if a place where weights lie is there, and is no file.
    """
    weights = (weight for graph in nested_graphs(model.graph) for weight in graph.initializer)
    entries = (entry for weight in weights for entry in weight.external_data)
    for name in sorted({entry.value for entry in entries if entry.key == "location"}):
        place = path.parent / name
        try:
            require_regular(place)
        except (OSError, ValueError) as error:  # ValueError: of a null character
            if isinstance(error, OSError) and place.exists():
                what = f"{path} has its weights in {name}"
                raise GraphInputError(what, got=error.strerror, expected="a file") from error


def _check_depth(path: Path, model: onnx.ModelProto) -> None:
    """Refuse branches in branches without end: every level doubles the work of a loader.

    Raises:
        GraphInputError: if graphs are nested more than `MOST_DEPTH` levels deep.
    """
    level = [model.graph.node, *(made.node for made in model.functions)]
    for _ in range(MOST_DEPTH):
        entries = (entry for nodes in level for node in nodes for entry in node.attribute)
        level = [graph.node for entry in entries for graph in subgraphs(entry)]
        if not level:
            return
    raise GraphInputError(
        f"{path} has branches and loops in each other", expected=f"at most {MOST_DEPTH} levels"
    )


def _check_unfolded(path: Path, model: onnx.ModelProto) -> None:
    """Count the nodes of a graph with its functions unfolded, before they are.

    Raises:
        GraphInputError: if a function calls itself, or the nodes are more than `MOST_NODES`.
    """
    bodies = {(made.domain, made.name): made.node for made in model.functions}
    counts: dict[tuple[str, str], float] = {}

    def count(nodes: Iterable[onnx.NodeProto]) -> float:
        return sum(1 + of(node) for node in nodes)

    def of(node: onnx.NodeProto) -> float:
        inner = sum(count(graph.node) for entry in node.attribute for graph in subgraphs(entry))
        key = (node.domain, node.op_type)
        if key in bodies and key not in counts:
            counts[key] = math.inf  # what a call from within itself finds
            counts[key] = count(bodies[key])
        return inner + counts.get(key, 0)

    try:
        total = count(model.graph.node)
    except RecursionError:
        total = math.inf
    if total > MOST_NODES:
        raise GraphInputError(
            f"{path} has functions that unfold without end or to too many nodes",
            got="no end" if math.isinf(total) else f"{total:,} nodes",
            expected=f"at most {MOST_NODES:,}",
        )


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
