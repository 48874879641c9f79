"""`tsformer doctor`: say what works on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich import box
from rich.table import Table
from rich.text import Text

from exporter.cli.options import Json
from exporter.cli.terminal import plain, show


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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("Part", "Works", "Found", "What to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        works = Text("yes", "green") if finding.works else Text("no", "yellow")
        table.add_row(finding.part, works, plain(finding.found), plain(finding.remedy))
    show(table)
    return 0
