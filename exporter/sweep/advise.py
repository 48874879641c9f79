"""Which export to deploy: the Pareto front of a sweep, and the pick within limits (pure).

Only what is proven counts: the cell as a whole, and the runtime that was timed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from exporter.errors import NoExportError, UsageError
from exporter.sweep.grid import name_of
from exporter.sweep.results import (
    CellResult,
    Criterion,
    Point,
    Timed,
    criterion_of,
    figures,
    find_front,
    read_cells,
    read_points,
)

NO_ACCURACY = (
    "No accuracy was measured (sweep with --eval): cells are compared by their error, which says "
    "how close each is to its own model, not how good that model is."
)


@dataclass(frozen=True)
class Limits:
    """What a choice must keep; None is no limit. Latency in milliseconds, memory in bytes."""

    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    max_memory: float | None = None

    def excesses(self, timed: Timed) -> dict[str, tuple[float, float]]:
        """What a runtime misses: its figure and the limit, by name."""
        accuracy = -1.0 if timed.accuracy is None else timed.accuracy
        limited = (
            ("latency", timed.p50_ms, self.max_latency_ms, 1),
            ("accuracy", accuracy, self.min_accuracy, -1),
            ("memory", timed.memory_mb * 2**20, self.max_memory, 1),
        )
        return {
            name: (got, limit)
            for name, got, limit, sign in limited
            if limit is not None and not sign * got <= sign * limit
        }


@dataclass(frozen=True)
class Advice:
    """What was found: `pick` meets the limits; else `closest` is what comes nearest to them."""

    criterion: Criterion
    limits: Limits
    pick: Point | None
    closest: Point | None
    reason: str
    front: tuple[Point, ...]
    proven: int
    cells: int

    def to_dict(self) -> dict[str, Any]:
        """Give the advice as JSON-ready values."""
        return {
            "criterion": self.criterion,
            "limits": asdict(self.limits),
            "pick": self.pick and _to_dict(self.pick),
            "closest": self.closest and _to_dict(self.closest),
            "reason": self.reason,
            "front": [_to_dict(point) for point in self.front],
            "proven": self.proven,
            "cells": self.cells,
        }


def _to_dict(point: Point) -> dict[str, Any]:
    names = ("runtime", "device", "precision", "verdict", "p50_ms", "error", "accuracy")
    return {
        "cell": dict(point.cell.values),
        "directory": point.cell.directory,
        **{name: getattr(point.timed, name) for name in (*names, "bytes", "memory_mb")},
    }


def advise(rows: Sequence[Mapping[str, Any]], limits: Limits, runtime: str | None = None) -> Advice:
    """The front of latency against quality, and the pick.

    Quality is accuracy where it was measured, else the model's error. Of what meets the limits the
    pick is the fastest where `min_accuracy` says how good is good enough, else the best.

    Args:
        rows: Those of `sweep.json`.
        limits: What the pick must keep.
        runtime: Count this runtime only.

    Raises:
        UsageError: if the runtime was not timed, or an accuracy is asked for and none was measured.
    """
    cells = read_cells(rows)
    if runtime:
        cells = _only(runtime, cells)
    proven = [timed for cell in cells for timed in cell.made if timed.verdict == "pass"]
    criterion = criterion_of(proven)
    if proven and limits.min_accuracy is not None and criterion == "error":
        raise UsageError(
            "--min-accuracy: no accuracy was measured", remedy="sweep with --eval, as --eval motion"
        )
    points = [point for point in read_points(cells, criterion) if point.proven]
    fitting = [point for point in points if not limits.excesses(point.timed)]
    found = choose(fitting, criterion, fastest=limits.min_accuracy is not None)
    closest = None if found else _closest(points, limits)
    reason = _reason(found, closest, limits, criterion, len(fitting))
    front = tuple(find_front(points, criterion))
    return Advice(criterion, limits, found, closest, reason, front, len(points), len(rows))


def _only(runtime: str, cells: Sequence[CellResult]) -> list[CellResult]:
    """The cells as if no other runtime had been timed."""
    names = sorted({timed.runtime for cell in cells for timed in cell.made})
    if names and runtime not in names:
        raise UsageError("--runtime", got=runtime, expected=f"one of {', '.join(names)}")
    return [
        replace(cell, timed=tuple(timed for timed in cell.made if timed.runtime == runtime))
        for cell in cells
    ]


def choose(points: Sequence[Point], criterion: Criterion, *, fastest: bool) -> Point | None:
    """The fastest, or the best; of equal ones what is better in the other, then the smaller."""

    def rank(point: Point) -> tuple[float, ...]:
        both = figures(point, criterion)
        return (*(both if fastest else both[::-1]), point.timed.bytes)

    return min(points, key=rank, default=None)


def _closest(points: Sequence[Point], limits: Limits) -> Point | None:
    """What misses its worst limit by the smallest part of it."""

    def distance(point: Point) -> float:
        missed = limits.excesses(point.timed).values()
        return max(abs(got - limit) / limit for got, limit in missed)

    return min(points, key=distance, default=None)


def _reason(
    pick: Point | None, closest: Point | None, limits: Limits, criterion: Criterion, fitting: int
) -> str:
    if pick:
        rule = (
            "the fastest that is accurate enough"
            if limits.min_accuracy is not None
            else f"the {'most accurate' if criterion == 'accuracy' else 'closest to its model'}"
        )
        among = f"of the {fitting} proven choices" if fitting > 1 else "of the only proven choice"
        within = " within the limits" if limits != Limits() else ""
        return f"{named(pick)} is {rule} {among}{within}: {_figures(pick.timed)}."
    if closest is None:
        return "No cell is proven, so none can be advised."
    misses = [_miss(name, *pair) for name, pair in limits.excesses(closest.timed).items()]
    return (
        f"Nothing meets the limits; closest is {named(closest)}, which misses {', '.join(misses)}."
    )


def named(point: Point) -> str:
    """The cell in words, with its runtime."""
    return f"{name_of(point.cell.values)} in {point.timed.runtime}"


def _figures(timed: Timed) -> str:
    """Latency and quality in words."""
    quality = (
        f"error {timed.error:.1e}" if timed.accuracy is None else f"accuracy {timed.accuracy:.1%}"
    )
    return f"{timed.p50_ms:.3g} ms, {quality}"


def _miss(name: str, got: float, limit: float) -> str:
    by = abs(got - limit)
    if name == "latency":
        return f"the latency by {by:.3g} ms ({got:.3g} for {limit:.3g})"
    if name == "accuracy":
        return f"the accuracy by {100 * by:.3g} points ({got:.1%} for {limit:.1%})"
    return f"the memory by {by / 1e6:.3g} MB ({got / 1e6:.3g} for {limit / 1e6:.3g})"


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of a sweep, or the one row that a single export is.

    Raises:
        NoExportError: if the directory is neither, or its JSON is not what we wrote.
    """
    sweep, report = directory / "sweep.json", directory / "report.json"
    try:
        if sweep.exists():
            rows = json.loads(sweep.read_text(encoding="utf-8"))["rows"]
        else:
            rows = [_as_row(directory, json.loads(report.read_text(encoding="utf-8")))]
        read_cells(rows)
    except OSError as error:
        raise NoExportError(
            f"{directory} is neither a sweep nor an export of tsformer: cannot read "
            f"{report.name}: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoExportError(f"the JSON of {directory} is damaged: {error!r}") from error
    return rows


def _as_row(directory: Path, report: dict[str, Any]) -> dict[str, Any]:
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return {
        "cell": {"export": directory.absolute().name},
        "status": "done",
        "verdict": manifest["verdict"],
        "directory": ".",
        "report": report,
    }
