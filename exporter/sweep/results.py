"""The rows of a sweep -> cells with what was measured of each, and the Pareto front (pure)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
    `error` is the worst relative L2 distance from the cell's own float64 truth; `bytes` the size of
    the file that is deployed; `memory_mb` the peak resident memory of the process (MiB).
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
    bytes: int
    memory_mb: float

    @property
    def where(self) -> str:
        """Runtime and device in words."""
        return f"{self.runtime} ({self.device})"


@dataclass(frozen=True)
class CellResult:
    """One cell: its values, what became of it, and what was measured.

    `pixels` is the side of a square of as many pixels as a frame has.
    """

    values: Mapping[str, Any]
    status: str
    verdict: str | None
    reason: str
    directory: str | None
    seconds: float | None
    attn: str
    res: str
    pixels: float | None
    timed: tuple[Timed, ...]

    @property
    def words(self) -> dict[str, str]:
        """The values in words."""
        return {name: _in_words(value) for name, value in self.values.items()}

    @property
    def name(self) -> str:
        """The cell in words."""
        return " ".join(self.words.values())

    @property
    def link(self) -> str | None:
        """Address of its page, from the sweep's; quoted, so that no name can be one elsewhere."""
        return f"{quote(self.directory)}/report.html" if self.directory else None

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
    """A cell in one runtime, as it is weighed against the others: `quality` is by the criterion."""

    cell: CellResult
    timed: Timed
    quality: float

    @property
    def proven(self) -> bool:
        """Whether it may be advised."""
        return self.timed.verdict == "pass"


def read_cells(rows: Iterable[Row]) -> list[CellResult]:
    """Read the rows of a sweep."""
    return [_read_cell(row) for row in rows]


def _read_cell(row: Row) -> CellResult:
    report = {"latency": ()} if row["report"] is None else row["report"]
    spec = report.get("spec") or {}
    height, width = spec.get("res") or (None, None)
    return CellResult(
        values=row["cell"],
        status=row["status"],
        verdict=row["verdict"],
        reason=row.get("reason") or "",
        directory=row.get("directory"),
        seconds=row.get("seconds"),
        attn=spec.get("attn") or str(row["cell"].get("attn", "")),
        res=size(height, width) if height else "",
        pixels=math.sqrt(height * width) if height else None,
        timed=tuple(_read_timed(report, row["verdict"], entry) for entry in report["latency"]),
    )


def _in_words(value: object) -> str:
    """A value of an axis; two numbers are a resolution."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value):
        return size(*value)
    return human(value)


def _read_timed(report: Row, verdict: str, entry: Row) -> Timed:
    runtime = entry["runtime"]
    parity = {} if runtime == "eager" else _same(report["parity"], entry)
    accuracy = _same(report.get("accuracy") or (), entry)
    judged = parity.get("verdict", "")
    return Timed(
        *(entry[key] for key in ("runtime", "device", "precision", "batch", "p50_ms", "p99_ms")),
        ratio_to_eager=entry.get("ratio_to_eager"),
        # proven as a whole: the engine of a cell may have failed where its graph passed
        verdict=verdict if judged == "pass" else judged,
        error=parity.get("rel_l2"),
        **{key: accuracy.get(key) for key in ("accuracy", "low", "high")},
        bytes=_file_bytes(report, runtime),
        memory_mb=entry["peak_memory_mb"],
    )


def _file_bytes(report: Row, runtime: str) -> int:
    if runtime.startswith("tensorrt"):
        return report["engine"]["bytes"]
    return report["graph"]["file_bytes"]


def _same(rows: Iterable[Row], entry: Row) -> Row:
    """The row that is about what the entry is about; empty where there is none."""
    keys = ("runtime", "device", "precision")
    return next((row for row in rows if all(row[key] == entry[key] for key in keys)), {})


def criterion_of(timed: Iterable[Timed]) -> Criterion:
    """What runtimes can be weighed by beside their latency: accuracy, where it was measured."""
    return "accuracy" if any(one.accuracy is not None for one in timed) else "error"


def read_points(cells: Iterable[CellResult], criterion: Criterion) -> list[Point]:
    """What can be weighed: every runtime of every cell that has both figures."""
    found = ((cell, timed, getattr(timed, criterion)) for cell in cells for timed in cell.made)
    return [
        Point(cell, timed, quality)
        for cell, timed, quality in found
        if quality is not None and math.isfinite(quality)
    ]


def figures(point: Point, criterion: Criterion) -> tuple[float, float]:
    """What should be small: the latency, and the error or what is no accuracy."""
    return point.timed.p50_ms, point.quality if criterion == "error" else -point.quality


def find_front(points: Iterable[Point], criterion: Criterion) -> list[Point]:
    """The Pareto front: the proven points that no other proven one dominates, the fastest first.

    One dominates another if it is nowhere worse and somewhere better. So points that are equally
    fast and equally good are on the front together, in the order given: they may differ in size
    or memory, and none of them is a reason to hide another.
    """
    front: list[Point] = []
    least = (-math.inf, math.inf)
    for point in sorted((p for p in points if p.proven), key=lambda p: figures(p, criterion)):
        found = figures(point, criterion)
        if found[1] < least[1] or found == least:
            front.append(point)
            least = found
    return front
