"""`tsformer doctor`: say what works on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from exporter.cli.parsing import Flag, Json, Targets
from exporter.cli.terminal import show
from exporter.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from exporter.machine.abilities import Ability
    from exporter.machine.environment import Finding


def doctor(*, require: Targets = (), json_: Json = False, debug: Flag = False) -> int:
    """Say what this machine can do, and what to install for the rest.

    With --require the exit code is 4 if the machine lacks an ability:
    gpu runs model.onnx on an NVIDIA GPU, engine runs TensorRT engines,
    openvino runs exports in OpenVINO on the CPU.

    Examples:
        tsformer doctor --require gpu,engine

    Args:
        require: Abilities that the machine must have: gpu, engine, openvino.
        json_: Print JSON instead of a table.
        debug: Show the trace of an error.
    """
    del debug
    from exporter.machine.abilities import REQUIRABLE, abilities
    from exporter.machine.abilities import require as check
    from exporter.machine.environment import describe, examine

    unknown = [name for name in require if name not in REQUIRABLE]
    if unknown:
        expected = ", ".join(REQUIRABLE)
        raise UsageError("--require", got=", ".join(unknown), expected=f"some of {expected}")
    findings = examine()
    able = abilities(findings)
    if json_:
        facts = {
            "environment": describe(),
            "findings": [asdict(f) for f in findings],
            "abilities": {ability.name: not ability.missing for ability in able},
        }
        show(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        show(_page(findings, able))
    check(require, able)
    return 0


def _page(findings: Sequence[Finding], able: Sequence[Ability]) -> RenderableType:
    from rich.console import Group

    from exporter.report.table import plain, plain_line, table, texts

    made = table(*texts("Part", "Works", "Found", "What to do"), gap=3)
    for finding in findings:
        works = plain("yes", "green") if finding.works else plain("no", "yellow")
        made.add_row(finding.part, works, plain_line(finding.found), plain_line(finding.remedy))
    can = ", ".join(ability.task for ability in able if not ability.missing)
    lines = [f"You can: {can or 'nothing yet'}."]
    lines += [f"To {a.task}: {a.remedies}." for a in able if a.missing and a.remedies]
    return Group(made, *map(plain_line, lines))
