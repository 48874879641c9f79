"""Findings -> the terminal: one paragraph a rule, errors first, within 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.text import Text

from exporter.lint import Finding
from exporter.lint.rule import RUNTIME_NAMES
from exporter.report.table import WIDTH, plain

_SHOWN = 5  # findings of one rule; --json shows all
_STYLES = {"error": "bold red", "warning": "yellow"}


def lint_view(findings: Sequence[Finding], runtimes: Sequence[str]) -> RenderableType:
    """Show what was found on these runtimes, and what to do about it."""
    if not findings:
        judged = " or ".join(RUNTIME_NAMES[runtime] for runtime in runtimes)
        return Text(f"Nothing that would hurt on {judged}.")
    rules = dict.fromkeys(finding.rule for finding in findings)
    parts = [_rule_view([f for f in findings if f.rule == rule]) for rule in rules]
    return Constrain(Group(*parts, Text(count_line(findings))), width=WIDTH)


def count_line(findings: Sequence[Finding]) -> str:
    """Count errors and warnings in words."""
    counts = {kind: sum(f.severity == kind for f in findings) for kind in _STYLES}
    return ", ".join(f"{n} {kind}{'' if n == 1 else 's'}" for kind, n in counts.items())


def _rule_view(found: Sequence[Finding]) -> RenderableType:
    first = found[0]
    runtimes = {runtime for finding in found for runtime in finding.runtimes}
    where = " and ".join(name for runtime, name in RUNTIME_NAMES.items() if runtime in runtimes)
    heading = Text(first.severity, _STYLES[first.severity])
    heading.append(f" {first.rule}", "bold").append(f" ({len(found)}), on {where}")
    lines: list[RenderableType] = [heading]
    for finding in found[:_SHOWN]:
        place = {None: "", "": " in the model itself"}.get(
            finding.module, f" in module {finding.module}"
        )
        lines.append(Padding(plain(f"{finding.where} {finding.what}{place}"), (0, 0, 0, 2)))
    if len(found) > _SHOWN:
        lines.append(Text(f"  and {len(found) - _SHOWN} more; --json lists them all"))
    lines.append(Padding(Text(f"-> {first.remedy}", "dim"), (0, 0, 1, 2)))
    return Group(*lines)
