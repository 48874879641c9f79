"""The rows of a sweep -> cells with what was measured of each, and the best trade-offs (pure)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from exporter.report.formats import human, size

Criterion = Literal["accuracy", "error"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Timed:
    """One runtime of a cell: milliseconds per batch, and how good its answers are.

    `verdict` is empty for eager PyTorch and for baselines, which nothing is to be proven of.
    """

    runtime: str
    device: str
    precision: str
    batch: int
    p50_ms: float
    p99_ms: float
    ratio_to_eager: float | None
    verdict: str
    error: float | None
    accuracy: float | None
    low: float | None
    high: float | None

    @property
    def where(self) -> str:
        """Runtime and device in words."""
        return f"{self.runtime} ({self.device})"


@dataclass(frozen=True)
class Cell:
    """One cell: its values in words, what became of it, and what was measured.

    `pixels` is the side of a square of as many pixels as a frame has.
    """

    values: Mapping[str, str]
    status: str
    verdict: str | None
    reason: str
    link: str | None
    seconds: float | None
    attn: str
    res: str
    pixels: float | None
    timed: tuple[Timed, ...]

    @property
    def name(self) -> str:
        """The cell in words."""
        return " ".join(self.values.values())

    @property
    def made(self) -> tuple[Timed, ...]:
        """The runtimes that were judged and timed."""
        return tuple(timed for timed in self.timed if timed.verdict)

    @property
    def fastest(self) -> Timed | None:
        """The fastest of what was made."""
        return min(self.made, key=lambda timed: timed.p50_ms, default=None)


@dataclass(frozen=True)
class Point:
    """A cell in one runtime, as it is weighed against the others."""

    cell: Cell
    timed: Timed
    quality: float
    proven: bool


def read_cells(sweep: Row) -> list[Cell]:
    """Read the rows of a sweep."""
    return [_read_cell(row) for row in sweep["rows"]]


def _read_cell(row: Row) -> Cell:
    report = row.get("report") or {}
    spec = report.get("spec") or {}
    height, width = spec.get("res") or (None, None)
    directory = row.get("directory")
    return Cell(
        values={name: _in_words(value) for name, value in row["cell"].items()},
        status=row["status"],
        verdict=row.get("verdict"),
        reason=row.get("reason") or "",
        # quoted, so that no name can be an address elsewhere
        link=f"{quote(directory)}/report.html" if directory else None,
        seconds=row.get("seconds"),
        attn=spec.get("attn") or str(row["cell"].get("attn", "")),
        res=size(height, width) if height else "",
        pixels=math.sqrt(height * width) if height else None,
        timed=tuple(_read_timed(report, row.get("verdict"), entry) for entry in _latency(report)),
    )


def _in_words(value: object) -> str:
    """A value of an axis; two numbers are a resolution."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value):
        return size(*value)
    return human(value)


def _latency(report: Row) -> Sequence[Row]:
    return report.get("latency") or ()


def _read_timed(report: Row, verdict: str | None, entry: Row) -> Timed:
    def same(part: str) -> Row:
        keys = ("runtime", "device", "precision")
        found = (row for row in report.get(part) or () if all(row[k] == entry[k] for k in keys))
        return next(found, {})

    parity = {} if entry["runtime"] == "eager" else same("parity")
    judged = parity.get("verdict", "")
    return Timed(
        *(entry[key] for key in ("runtime", "device", "precision", "batch", "p50_ms", "p99_ms")),
        ratio_to_eager=entry.get("ratio_to_eager"),
        # proven as a whole: the engine of a cell may have failed where its graph passed
        verdict=judged if judged != "pass" or not verdict else verdict,
        error=parity.get("rel_l2"),
        **{key: same("accuracy").get(key) for key in ("accuracy", "low", "high")},
    )


def criterion_of(cells: Iterable[Cell]) -> Criterion:
    """What cells can be weighed by beside their latency: accuracy, where it was measured."""
    accurate = any(timed.accuracy is not None for cell in cells for timed in cell.made)
    return "accuracy" if accurate else "error"


def read_points(cells: Iterable[Cell], criterion: Criterion) -> list[Point]:
    """What can be weighed: every runtime of every cell that has both figures."""
    found = ((cell, timed, getattr(timed, criterion)) for cell in cells for timed in cell.made)
    return [
        Point(cell, timed, quality, timed.verdict == "pass")
        for cell, timed, quality in found
        if quality is not None and math.isfinite(quality)
    ]


def find_front(points: Iterable[Point], criterion: Criterion) -> list[Point]:
    """The proven points that no other is faster and better than, the fastest first."""
    better = 1 if criterion == "accuracy" else -1
    best, front = -math.inf, []
    order = (point for point in points if point.proven)
    for point in sorted(order, key=lambda p: (p.timed.p50_ms, -better * p.quality)):
        if better * point.quality > best:
            best = better * point.quality
            front.append(point)
    return front
