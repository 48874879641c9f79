"""What a rule yields: one place in a graph, and what is wrong there."""

from __future__ import annotations

import re
from typing import NamedTuple

import onnx

from exporter.graph.view import GraphView

_NAMED = re.compile(r"node name: ([^)]*)\)")


class Spot(NamedTuple):
    """One place in a graph: the name of a node or value, and what is wrong there.

    `nodes` are the nodes from which the module is taken; the first known one is reported.
    """

    where: str
    what: str
    nodes: tuple[onnx.NodeProto, ...]


def at_node(node: onnx.NodeProto, what: str) -> Spot:
    """A spot at a node."""
    return Spot(node_label(node), what, (node,))


def at_value(view: GraphView, name: str, what: str) -> Spot:
    """A spot at a value; its nodes are the node that makes it, or else those that read it."""
    maker = view.producers.get(name)
    readers = tuple(reader.node for reader in view.readers.get(name, ()))
    return Spot(name, what, readers if maker is None else (maker,))


def node_label(node: onnx.NodeProto) -> str:
    """The name of a node; a node without a name is called by its operator and outputs."""
    return node.name or f"{node.op_type} of {', '.join(filter(None, node.output)) or 'nothing'}"


def named_in(view: GraphView, message: str) -> tuple[onnx.NodeProto, ...]:
    """The node that a message of ONNX names; empty if it names none."""
    names = {name.strip() for name in _NAMED.findall(message)}
    return tuple(node for node in view.nodes if node.name and node.name in names)[:1]
