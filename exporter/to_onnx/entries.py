"""Entries of an axis in int8 graphs for a CPU: taken in two steps, which OpenVINO needs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporter.graph.view import attribute
from exporter.graph.weights import set_weights


def take_in_two_steps(graph: onnx.GraphProto) -> None:
    """Let each Gather of one entry keep its axis, and remove the axis in a node of its own.

    OpenVINO 2026.4 moves the scales of an int8 graph through a mean and a Gather before it, and
    then takes the number of axes before a Gather that removes one for the number after it. It
    refused every graph in which a class token is the mean of those of its frames.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        index = weights.get(node.input[1]) if node.op_type == "Gather" else None
        if index is None or index.dims or node.input[0] in weights:
            continue
        out = node.output[0]
        for name, value in (
            (f"{out}_index", numpy_helper.to_array(index).reshape(1)),
            (f"{out}_axis", np.array([attribute(node, "axis", 0)], np.int64)),
        ):
            weights[name] = numpy_helper.from_array(value, name)
        node.input[1], node.output[0] = f"{out}_index", f"{out}_kept"
        last = helper.make_node(
            "Squeeze", [f"{out}_kept", f"{out}_axis"], [out], name=f"{out}_sole"
        )
        last.metadata_props.extend(node.metadata_props)
        nodes.append(last)
    del graph.node[:]
    graph.node.extend(nodes)
    set_weights(graph, weights)
