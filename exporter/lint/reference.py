"""The reference of all lint rules in Markdown, made from the rules themselves."""

from __future__ import annotations

import re

from exporter.lint import RULES
from exporter.lint.rule import Rule


def describe_rules() -> str:
    """Write the reference: a table of all rules, then a section for each.

    A section has the name of its rule as the heading of level 2, how severe it is and for which
    runtimes, what it finds and why that hurts, and the remedy.
    """
    rows = [
        f"| [`{rule.name}`](#{rule.name}) | {rule.severity} | {rule.where} |"
        for rule in RULES.values()
    ]
    table = "\n".join(["| Rule | Severity | Runtimes |", "| --- | --- | --- |", *rows])
    return "\n\n".join([table, *map(_section, RULES.values())]) + "\n"


def _section(rule: Rule) -> str:
    scope = f"**{rule.severity.capitalize()}** on {rule.where}."
    remedy = re.sub(r"([\\`*_<\[])", r"\\\1", rule.remedy)  # is written for a terminal
    parts = (f"## {rule.name}", f"{scope} {rule.summary}", rule.explanation, f"Remedy: {remedy}.")
    return "\n\n".join(part for part in parts if part)
