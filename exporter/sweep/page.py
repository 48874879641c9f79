"""Write report.html and report.md of a sweep: the compared cells and the best trade-offs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.files.place import whole_file
from exporter.report.pages import write_page
from exporter.report.words import BUSY_CORES
from exporter.results import Verdict
from exporter.spec import listed
from exporter.sweep.plots import (
    dash,
    find_panels,
    look,
    resolution_plot,
    runtimes,
    trade,
    trade_plot,
)
from exporter.sweep.results import (
    NO_ACCURACY,
    CellResult,
    Criterion,
    criterion_of,
    find_front,
    read_cells,
    read_points,
)

_NAMED = 6  # cells that a note names
LONGEST = 60  # most rows of a Markdown table: a longer table is too long for a pull request


def write_sweep_report(sweep: dict[str, Any], directory: Path) -> None:
    """Write `report.html` and `report.md` of a sweep into its existing directory.

    Args:
        sweep: The content of `sweep.json`. Each row contains the `report.json` of its cell.
        directory: The directory of the sweep. Links to cells are relative to it.

    Raises:
        OutputError: if they cannot be written.
    """
    cells = read_cells(sweep["rows"])
    criterion = criterion_of(timed for cell in cells for timed in cell.made)
    points = read_points(cells, criterion)
    facts = {
        "axes": list(sweep["axes"]),
        "base": sweep["base"],
        "environment": sweep["environment"],
        "cells": cells,
        "failed": [cell for cell in cells if cell.status == "failed"],
        "verdict": verdict_of(cells),
        "headline": headline(cells),
        "notes": _notes(sweep, cells, criterion),
        "criterion": criterion,
        "points": points,
        "front": find_front(points, criterion),
        "panels": find_panels(cells),
        "mechanisms": list(dict.fromkeys(cell.attn for cell in cells if cell.timed)),
        "longest": LONGEST,
        "resolution_plot": resolution_plot,
        "trade_plot": trade_plot,
        "trade": trade,
        "look": look,
        "dash": dash,
        "runtimes": runtimes,
    }
    for kind in ("html", "md"):
        with whole_file(directory / f"report.{kind}") as page:
            write_page(page, f"sweep.{kind}.jinja", **facts)


def verdict_of(cells: Sequence[CellResult]) -> Verdict:
    """Return the verdict of the whole sweep. It is "pass" if all cells are done and proven."""
    found = {cell.verdict for cell in cells if cell.status == "done"}
    if any(cell.status == "failed" for cell in cells) or "fail" in found:
        return "fail"
    if "ill-conditioned" in found:
        return "ill-conditioned"
    whole = all(cell.status == "done" for cell in cells)
    return "pass" if cells and whole and found == {"pass"} else "not-run"


def headline(cells: Sequence[CellResult]) -> str:
    """Return one sentence that counts the proven, not proven, failed and pending cells."""
    proven = sum(cell.status == "done" and cell.verdict == "pass" for cell in cells)
    others = {
        "not proven": [c for c in cells if c.status == "done" and c.verdict != "pass"],
        "failed": [c for c in cells if c.status == "failed"],
        "still to do": [c for c in cells if c.status == "pending"],
    }
    said = [f"{len(some)} {what}" for what, some in others.items() if some]
    return ", ".join([f"{proven} of {len(cells)} cells proven", *said]) + "."


def _notes(
    sweep: Mapping[str, Any], cells: Sequence[CellResult], criterion: Criterion
) -> list[str]:
    lines = []
    if criterion == "error":
        lines.append(NO_ACCURACY)
    skipped = [c for c in cells if c.status == "done" and not _has(c.made, criterion)]
    if skipped:
        lines.append(f"Not compared, as no runtime was both timed and judged: {_names(skipped)}")
    busy = [cell for cell, row in zip(cells, sweep["rows"], strict=True) if _was_busy(row)]
    if busy:
        lines.append(f"Timed while other processes kept the machine busy: {_names(busy)}")
    return lines


def _has(made: Iterable[object], criterion: Criterion) -> bool:
    return any(getattr(timed, criterion) is not None for timed in made)


def _was_busy(row: Mapping[str, Any]) -> bool:
    facts = (row.get("report") or {}).get("environment") or {}
    return (facts.get("cores_busy_with_others") or 0.0) > BUSY_CORES


def _names(cells: Sequence[CellResult]) -> str:
    return listed((cell.name for cell in cells), _NAMED)
