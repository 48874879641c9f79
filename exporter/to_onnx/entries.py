"""Entries of an axis in int8 graphs for a CPU: taken in two steps, which OpenVINO needs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def take_in_two_steps(graph: onnx.GraphProto) -> None:
    """Let each Gather of one entry keep its axis, and remove the axis in a node of its own.

    OpenVINO 2026.4 moves the scales of an int8 graph through a mean and a Gather before it, and
    then takes the number of axes before a Gather that removes one for the number after it. It
    refused every graph in which a class token is the mean of those of its frames.
    """
    known = {one.name: one for one in graph.initializer}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        index = known.get(node.input[1]) if node.op_type == "Gather" else None
        if index is None or index.dims or node.input[0] in known:
            continue
        out, axis = node.output[0], next((e.i for e in node.attribute if e.name == "axis"), 0)
        constants = {
            f"{out}_index": numpy_helper.to_array(index).reshape(1),
            f"{out}_axis": np.array([axis], np.int64),
        }
        graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
        node.input[1], node.output[0] = f"{out}_index", f"{out}_kept"
        last = helper.make_node(
            "Squeeze", [f"{out}_kept", f"{out}_axis"], [out], name=f"{out}_sole"
        )
        last.metadata_props.extend(node.metadata_props)
        nodes.append(last)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [one for one in graph.initializer if one.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
