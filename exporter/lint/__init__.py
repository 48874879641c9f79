"""What would hurt on TensorRT or ONNX Runtime, found in the graph alone, before anything is built.

A rule is a function with the decorator `rule`, in one of the chapters below. Graphs of any origin
are read, also those that no runtime loads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from exporter.graph.view import GraphView
from exporter.lint import batch, operators, ranges, types, validity, waste
from exporter.lint.location import Spot, node_label
from exporter.lint.rule import REGISTERED, RUNTIMES, Rule, Severity

__all__ = ["CHAPTERS", "RULES", "RUNTIMES", "Finding", "Rule", "lint"]

# The order of the findings of one severity, and of the reference.
CHAPTERS = (validity, types, operators, batch, ranges, waste)
RULES: Mapping[str, Rule] = {
    name: rule
    for chapter in CHAPTERS
    for name, rule in REGISTERED.items()
    if rule.find.__module__ == chapter.__name__
}


@dataclass(frozen=True)
class Finding:
    """One place where a rule fired.

    `where` names a node or a value, and `what` says what is wrong there. `module` is the path of
    the PyTorch module that made it, empty for the model itself and `None` if the file does not say.
    """

    rule: str
    severity: Severity
    runtimes: tuple[str, ...]
    where: str
    what: str
    module: str | None
    nodes: tuple[str, ...]
    remedy: str


def lint(view: GraphView, rules: Collection[str] = tuple(RULES)) -> tuple[Finding, ...]:
    """Find where the rules of these names fire: errors first, then in the order of the rules."""
    chosen = [rule for name, rule in RULES.items() if name in rules]
    found = [_finding(view, rule, spot) for rule in chosen for spot in rule.find(view)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def _finding(view: GraphView, rule: Rule, spot: Spot) -> Finding:
    modules = (view.module(node) for node in spot.nodes)
    return Finding(
        rule=rule.name,
        severity=rule.severity,
        runtimes=rule.runtimes,
        where=spot.where,
        what=spot.what,
        module=next((module for module in modules if module is not None), None),
        nodes=tuple(map(node_label, spot.nodes)),
        remedy=rule.remedy,
    )
