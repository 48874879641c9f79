"""Choose the export to deploy: the Pareto front of a sweep, and the pick within limits (pure).

Only proven choices count: the whole cell must be proven, and the timed runtime must be proven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from exporter.errors import NoExportError, UsageError
from exporter.files.machines import Machine, present_rows, read_machines
from exporter.files.manifest import MANIFEST, read_manifest
from exporter.files.text import read_json
from exporter.files.version import require_version
from exporter.results import HOST_TO_HOST
from exporter.sweep.grid import name_of
from exporter.sweep.results import (
    SWEEP_VERSION,
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


@dataclass(frozen=True)
class Limits:
    """Limits for a choice; None means no limit. Latency in milliseconds, memory in bytes."""

    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    max_memory: float | None = None

    def excesses(self, timed: Timed) -> dict[str, tuple[float, float]]:
        """Return the limits that a runtime misses: by name, its value and the limit."""
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
    """The result. `pick` meets the limits; if no point does, `closest` is nearest to them."""

    criterion: Criterion
    limits: Limits
    pick: Point | None
    closest: Point | None
    reason: str
    front: tuple[Point, ...]
    proven: int
    cells: int

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as values that JSON can hold."""
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
    """Find the front of latency against quality, and pick one point.

    Quality is the accuracy if it was measured, else the error of the cell. Among the points that
    meet the limits, the pick has the best quality. With a limit `min_accuracy`, the pick is the
    fastest instead, because every such point is accurate enough.

    Args:
        rows: The rows of `sweep.json`.
        limits: Limits for the pick.
        runtime: Consider only this runtime.

    Raises:
        UsageError: if the runtime was not timed, or `min_accuracy` is set and no accuracy was
            measured.
    """
    cells = read_cells(rows)
    if runtime:
        cells = _select_runtime(runtime, cells)
    proven = [timed for cell in cells for timed in cell.made if timed.verdict == "pass"]
    criterion = criterion_of(proven)
    if proven and limits.min_accuracy is not None and criterion == "error":
        raise UsageError(
            "--min-accuracy: no accuracy was measured",
            remedy="sweep with --eval, for example --eval motion",
        )
    points = [point for point in read_points(cells, criterion) if point.proven]
    fitting = [point for point in points if not limits.excesses(point.timed)]
    found = choose(fitting, criterion, fastest=limits.min_accuracy is not None)
    closest = None if found else _closest(points, limits)
    reason = _reason(found, closest, limits, criterion, len(fitting))
    front = tuple(find_front(points, criterion))
    return Advice(criterion, limits, found, closest, reason, front, len(points), len(rows))


def _select_runtime(runtime: str, cells: Sequence[CellResult]) -> list[CellResult]:
    """Return the cells with the timings of one runtime only."""
    names = sorted({timed.runtime for cell in cells for timed in cell.made})
    if names and runtime not in names:
        raise UsageError("--runtime", got=runtime, expected=f"one of {', '.join(names)}")
    return [
        replace(cell, timed=tuple(timed for timed in cell.made if timed.runtime == runtime))
        for cell in cells
    ]


def choose(points: Sequence[Point], criterion: Criterion, *, fastest: bool) -> Point | None:
    """Return the fastest or the best point.

    Ties are broken by the other of the two criteria, then by the smaller file.
    """

    def rank(point: Point) -> tuple[float, ...]:
        both = figures(point, criterion)
        return (*(both if fastest else both[::-1]), point.timed.bytes)

    return min(points, key=rank, default=None)


def _closest(points: Sequence[Point], limits: Limits) -> Point | None:
    """Return the point whose largest relative excess over a limit is the smallest.

    The excess over a limit of 0 is absolute.
    """

    def distance(point: Point) -> float:
        missed = limits.excesses(point.timed).values()
        return max(abs(got - limit) / (limit or 1) for got, limit in missed)

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
    """Return the name of a point: its cell and its runtime."""
    return f"{name_of(point.cell.values)} in {point.timed.runtime}"


def _figures(timed: Timed) -> str:
    """Return latency and quality as text."""
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


def read_rows(directory: Path, machine: str | None = None) -> list[dict[str, Any]]:
    """Read the rows of a sweep. A single export counts as a sweep.

    An export has a row for the machine that exported it, and one for each machine that recorded
    times of its files as they are now.

    Args:
        directory: A sweep or an export.
        machine: Take only the row that this machine recorded.

    Raises:
        NoExportError: if the directory is neither a sweep nor an export, or its JSON is damaged
            or of a newer tsformer.
        ManifestError: if a file of a single export was changed.
        UsageError: if the machine recorded nothing.
    """
    sweep = directory / "sweep.json"
    try:
        if sweep.exists():
            content = read_json(sweep)
            require_version(sweep, content.get("sweep_version", SWEEP_VERSION), SWEEP_VERSION)
            rows = content["rows"]
        else:
            rows = _rows_of_export(directory)
        read_cells(rows)
    except OSError as error:
        raise NoExportError(
            f"{directory} is neither a sweep nor an export of tsformer: cannot read "
            f"{Path(error.filename or directory).name}: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoExportError(f"the JSON of {directory} is damaged: {error!r}") from error
    if machine is None:
        return rows
    known = [row["cell"]["machine"] for row in rows if "machine" in row["cell"]]
    if machine not in known:
        expected = f"one of {', '.join(known)}" if known else "a machine that recorded times"
        remedy = "run tsformer verify --record and bench --record there"
        raise UsageError("--machine", got=machine, expected=expected, remedy=remedy)
    return [row for row in rows if row["cell"].get("machine") == machine]


def _rows_of_export(directory: Path) -> list[dict[str, Any]]:
    (directory / MANIFEST).stat()  # else it is no export: an error of the system
    manifest = read_manifest(directory)  # what was changed since is not proven
    machines = read_machines(directory, manifest)
    rows = [_as_row(directory, manifest, m.name, _report_of(m, manifest)) for m in machines.found]
    report = directory / "report.json"
    if rows and not report.exists():
        return rows  # of an edge image
    own = read_json(report)
    own |= {table: present_rows(own, manifest, table) for table in ("parity", "latency")}
    return [_as_row(directory, manifest, None, own), *rows]


def _report_of(machine: Machine, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a machine recorded at the batch of the export, as a report."""
    batch = manifest["spec"]["batch"]
    timed = [x for x in machine.latency if x.batch == batch and x.timing == HOST_TO_HOST]
    return {
        "spec": manifest["spec"],
        "parity": [asdict(row) for row in machine.parity],
        "latency": [asdict(row) for row in timed],
        "graph": manifest["graph"],
        "engine": manifest["engine"],
    }


def _as_row(
    directory: Path, manifest: Mapping[str, Any], machine: str | None, report: dict[str, Any]
) -> dict[str, Any]:
    cell = {"export": directory.absolute().name}
    return {
        "cell": cell if machine is None else cell | {"machine": machine},
        "status": "done",
        "verdict": manifest["verdict"],
        "directory": ".",
        "report": report,
    }
