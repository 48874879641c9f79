"""`tsformer doctor`: say what works on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict

from exporter.cli.parsing import Json
from exporter.cli.terminal import show


def doctor(*, json_: Json = False) -> int:
    """Say what this machine can do, and what to install for the rest.

    Args:
        json_: Print JSON instead of a table.
    """
    from exporter.machine.environment import describe, examine

    findings = examine()
    if json_:
        facts = {"environment": describe(), "findings": [asdict(f) for f in findings]}
        show(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    from exporter.report.table import plain, plain_line, table, texts

    made = table(*texts("Part", "Works", "Found", "What to do"), gap=3)
    for finding in findings:
        works = plain("yes", "green") if finding.works else plain("no", "yellow")
        made.add_row(finding.part, works, plain_line(finding.found), plain_line(finding.remedy))
    show(made)
    return 0
