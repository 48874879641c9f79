"""What a rule gives: one place in a graph, and what is wrong there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import onnx

from exporter.graph.view import GraphView

_NAMED = re.compile(r"node name: ([^)]*)\)")


class Spot(NamedTuple):
    """A node or value by name, what is said of it, and the nodes that tell its module."""

    where: str
    what: str
    nodes: tuple[onnx.NodeProto, ...]


def at_node(node: onnx.NodeProto, what: str) -> Spot:
    """A spot at a node; one without a name is told by what it makes."""
    return Spot(node_label(node), what, (node,))


def at_value(view: GraphView, name: str, what: str) -> Spot:
    """A spot at a value: the nodes are the one that makes it, or else those that read it."""
    maker = view.producers.get(name)
    readers = tuple(reader.node for reader in view.readers.get(name, ()))
    return Spot(name, what, readers if maker is None else (maker,))


def node_label(node: onnx.NodeProto) -> str:
    """How a node is called."""
    return node.name or f"{node.op_type} of {', '.join(filter(None, node.output)) or 'nothing'}"


def named_in(view: GraphView, message: str) -> tuple[onnx.NodeProto, ...]:
    """The node that a message of ONNX is about."""
    names = {name.strip() for name in _NAMED.findall(message)}
    return tuple(node for node in view.nodes if node.name and node.name in names)[:1]


def listed(words: Iterable[object], most: int = 4) -> str:
    """Write a few of many names."""
    names = list(map(str, words))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
