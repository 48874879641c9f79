"""Rules on the file: it is valid ONNX, and its weights are there."""

from __future__ import annotations

from collections.abc import Iterator

from exporter.graph.view import GraphView
from exporter.lint.location import Spot, named_in
from exporter.lint.rule import rule
from exporter.lint.types import einsum_types, mixed_float64, mixed_types
from model.words import listed


@rule(
    "not-valid",
    severity="error",
    remedy="export it again with a current exporter: a runtime gives the same error",
)
def not_valid(view: GraphView) -> Iterator[Spot]:
    """The checker of ONNX refuses the graph.

    Examples are an unknown operator, a value that no node makes, shapes that do not fit, and nodes
    in a cycle. Every runtime refuses such a graph. Mixed types are reported by `mixed-types`,
    `mixed-float64` and `einsum-types`, which say more than the checker does.
    """
    told = view.contradiction
    nodes = named_in(view, told)
    of_types = (mixed_types, mixed_float64, einsum_types)
    mixed = {spot.where for find in of_types for spot in find(view)}
    if told and not (nodes and nodes[0].name in mixed):
        reason = " ".join(told.split())[:300]
        yield Spot(nodes[0].name if nodes else "the graph", f"is not valid ONNX: {reason}", nodes)


@rule("missing-weights", severity="error", remedy="put the file with the weights beside the graph")
def missing_weights(view: GraphView) -> Iterator[Spot]:
    """The graph keeps weights in another file, and that file cannot be read.

    A graph with external data is two files or more, and often only the graph itself was copied.
    Rules that read the content of weights cannot judge these weights.
    """
    if view.missing:
        entries = (entry for name in view.missing for entry in view.weights[name].external_data)
        places = {entry.value for entry in entries if entry.key == "location"}
        what = f"lacks {len(view.missing)} weights kept in {listed(sorted(places))}"
        yield Spot("the graph", what, ())
