"""The results of scripts/faults.py -> a table of the guide."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pages import table

HEADINGS = (
    "precision",
    "planted",
    "killed",
    "by weights",
    "by structure",
    "by rounding",
    "harmless",
    "false passes",
)


def faults_table(measured: dict[str, Any]) -> str:
    """Count the faults of each precision, and what killed them."""
    rows = measured["faults"]
    precisions = sorted({row["model"].rpartition("-")[2] for row in rows})
    lines = [
        _line(name, [r for r in rows if r["model"].endswith(f"-{name}")]) for name in precisions
    ]
    about = measured["environment"]
    kinds, models = ({row[key] for row in rows} for key in ("kind", "model"))
    return (
        table(HEADINGS, [*lines, _line("all", rows)])
        + f"\n{len(kinds)} kinds of faults in {len(models)} models of depth 2; "
        + f"{about['date'][:10]}, {about['cpu']}.\n"
    )


def _line(name: str, rows: list[dict[str, Any]]) -> list[str]:
    states, by = Counter(row["state"] for row in rows), Counter(row["by"] for row in rows)
    numbers = [len(rows), states["killed"], by["weights"], by["structure"], by["rounding"]]
    return [name, *map(str, [*numbers, states["harmless"], states["false pass"]])]
