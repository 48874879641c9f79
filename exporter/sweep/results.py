"""Read the rows of a sweep as cells with their measurements; find the Pareto front (pure)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from exporter.report.formats import human, size
from exporter.results import worst_verdict

Criterion = Literal["accuracy", "error"]
SWEEP_VERSION = 1  # of sweep.json
Row = Mapping[str, Any]
NO_ACCURACY = (  # why the criterion is the error
    "No accuracy was measured (sweep with --eval). Cells are compared by their error: the distance "
    "of a cell from its own model. The error does not say how accurate that model is"
)


@dataclass(frozen=True)
class Timed:
    """The measurements of one runtime of a cell: milliseconds per batch, and quality.

    `verdict` is empty for eager PyTorch and for baselines, which need no proof. `error` is the
    largest relative L2 distance from the float64 truth of the cell. `low` and `high` bound the
    accuracy. `bytes` is the size of the file to deploy. `memory_mb` is the peak resident memory of
    the process (MiB).
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
        """Runtime and device as text."""
        return f"{self.runtime} ({self.device})"


@dataclass(frozen=True)
class CellResult:
    """One cell: its values, its outcome, and its measurements.

    `pixels` is the side of the square that has as many pixels as a frame.
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
        """The values as text."""
        return {name: _as_text(value) for name, value in self.values.items()}

    @property
    def name(self) -> str:
        """The name of the cell: its values as text."""
        return " ".join(self.words.values())

    @property
    def link(self) -> str | None:
        """Link to the cell's page, relative to the sweep's page.

        The directory is quoted, so a hostile name cannot become a link to another site.
        """
        return f"{quote(self.directory)}/report.html" if self.directory else None

    @property
    def made(self) -> tuple[Timed, ...]:
        """The runtimes that were judged and timed."""
        return tuple(timed for timed in self.timed if timed.verdict)

    @property
    def fastest(self) -> Timed | None:
        """The fastest of the runtimes in `made`."""
        return min(self.made, key=lambda timed: timed.p50_ms, default=None)


@dataclass(frozen=True)
class Point:
    """A cell in one runtime, for comparison. `quality` is the value of the criterion."""

    cell: CellResult
    timed: Timed
    quality: float

    @property
    def proven(self) -> bool:
        """Whether the point is proven. Only a proven point may be advised."""
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


def _as_text(value: object) -> str:
    """Return a value of an axis as text. Two whole numbers are a resolution."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value):
        return size(*value)
    return human(value)


def _read_timed(report: Row, verdict: str, entry: Row) -> Timed:
    runtime = entry["runtime"]
    parity = [] if runtime == "eager" else _find_rows(report["parity"], entry)  # one an output
    accuracy = next(iter(_find_rows(report.get("accuracy") or (), entry)), {})
    judged = worst_verdict(row["verdict"] for row in parity) if parity else ""
    errors = [row["rel_l2"] for row in parity if row.get("rel_l2") is not None]
    return Timed(
        runtime=runtime,
        device=entry["device"],
        precision=entry["precision"],
        batch=entry["batch"],
        p50_ms=entry["p50_ms"],
        p99_ms=entry["p99_ms"],
        ratio_to_eager=entry.get("ratio_to_eager"),
        # The whole cell must be proven: its engine may fail although its graph passes.
        verdict=verdict if judged == "pass" else judged,
        error=max(errors, default=None),
        accuracy=accuracy.get("accuracy"),
        low=accuracy.get("low"),
        high=accuracy.get("high"),
        bytes=_file_bytes(report, runtime),
        memory_mb=entry["peak_memory_mb"],
    )


def _file_bytes(report: Row, runtime: str) -> int:
    if runtime.startswith("tensorrt"):
        return report["engine"]["bytes"]
    graph = report["graph"]
    shared = graph["file_bytes"]
    return graph.get("openvino_bytes", shared) if runtime.startswith("openvino") else shared


def _find_rows(rows: Iterable[Row], entry: Row) -> list[Row]:
    """Return the rows with the runtime, device and precision of `entry`."""
    keys = ("runtime", "device", "precision")
    return [row for row in rows if all(row[key] == entry[key] for key in keys)]


def criterion_of(timed: Iterable[Timed]) -> Criterion:
    """Return the criterion beside latency: the accuracy if it was measured, else the error."""
    return "accuracy" if any(one.accuracy is not None for one in timed) else "error"


def read_points(cells: Iterable[CellResult], criterion: Criterion) -> list[Point]:
    """Return every runtime of every cell that has a latency and a finite quality."""
    points = []
    for cell in cells:
        for timed in cell.made:
            quality = getattr(timed, criterion)
            if quality is not None and math.isfinite(quality):
                points.append(Point(cell, timed, quality))
    return points


def figures(point: Point, criterion: Criterion) -> tuple[float, float]:
    """Return two numbers to minimise: the latency, and the error or the negated accuracy."""
    return point.timed.p50_ms, point.quality if criterion == "error" else -point.quality


def find_front(points: Iterable[Point], criterion: Criterion) -> list[Point]:
    """Return the Pareto front: the proven points that no other proven point dominates.

    The fastest point is first. A point dominates another point if it is not worse in latency or
    quality, and better in at least one of them. So points with equal latency and equal quality are
    all on the front, in the order given. They may differ in size or memory, so each is worth
    showing.
    """
    front: list[Point] = []
    least = (-math.inf, math.inf)
    for point in sorted((p for p in points if p.proven), key=lambda p: figures(p, criterion)):
        found = figures(point, criterion)
        if found[1] < least[1] or found == least:
            front.append(point)
            least = found
    return front
