"""Every cell of a grid exported; what is finished is kept, and never made again.

`sweep.json` has one row for each cell and is whole at any moment; `cells/` has one export directory
for each; `sweep.log` has one line for each start and end of a cell, and is only added to.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporter.cell_key import Keys
from exporter.cell_process import CellProcesses, Order
from exporter.errors import ManifestError, NoExportError, OutputError, UsageError
from exporter.grid import Grid, name_of
from exporter.manifest import read_manifest
from exporter.report import strict_json
from exporter.spec import ExportSpec

SWEEP = "sweep.json"
_SUFFIX = 12  # digits of the key in a cell's name: enough to find it, short enough to read


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: its values, and its spec or why there can be none."""

    values: dict[str, Any]
    spec: ExportSpec | None
    problem: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a sweep is: cells settled, all cells, what runs, and the seconds left if known."""

    settled: int
    total: int
    running: tuple[str, ...]
    seconds_left: float | None


OnProgress = Callable[[Progress], None]
Row = dict[str, Any]


def sweep(
    grid: Grid,
    cells: Sequence[Cell],
    directory: Path,
    *,
    jobs: int = 1,
    on_progress: OnProgress = lambda _progress: None,
) -> dict[str, Any]:
    """Make every cell that is not there yet; give what `sweep.json` then holds.

    Cells run in processes of their own. With several jobs their threads are divided, but a cell is
    timed with all threads and while no other works.

    Args:
        grid: What the cells are of, for the record.
        cells: What to export.
        directory: The sweep's own; made, or gone on with.
        jobs: Cells that are made at a time.
        on_progress: Told how far it is, from several threads.

    Raises:
        UsageError: if two cells are the same export.
        OutputError: if the directory cannot be used.
    """
    with _hold(directory):
        import torch  # only who makes cells waits for it

        from exporter import environment

        facts, threads = environment.describe(), torch.get_num_threads()
        table = _Table(directory, _describe(grid, facts), on_progress)
        table.rows = _rows(cells, Keys(facts), threads)
        todo = table.find_kept(cells)
        table.save()
        if todo:
            _make(todo, table, jobs=jobs, threads=threads)
        return table.sweep


def _describe(grid: Grid, facts: dict[str, Any]) -> dict[str, Any]:
    axes = {name: list(values) for name, values in grid.axes.items()}
    return {"sweep_version": 1, "axes": axes, "base": dict(grid.base), "environment": facts}


def _rows(cells: Sequence[Cell], keys: Keys, threads: int) -> list[Row]:
    rows: list[Row] = []
    for cell in cells:
        key = keys.key(cell.spec, cell.spec.threads or threads) if cell.spec else ""
        same = next((row for row in rows if key and row["key"] == key), None)
        if same:
            raise UsageError(
                "two cells are the same export",
                got=f"{name_of(same['cell'])} and {name_of(cell.values)}",
                remedy="leave one of the values away",
            )
        status = "pending" if cell.spec else "failed"
        rows.append(_row(cell.values, key, status, reason=cell.problem))
    return rows


def _row(values: dict[str, Any], key: str, status: str, **more: object) -> Row:
    return {
        "cell": values,
        "key": key,
        "status": status,
        "verdict": None,
        "reason": "",
        "directory": None,
        "seconds": None,
        "report": None,
        **more,
    }


@dataclass
class _Table:
    """The rows, their file and their log."""

    directory: Path
    head: dict[str, Any]
    on_progress: OnProgress
    rows: list[Row] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)  # seconds that the cells of this run took
    running: dict[str, str] = field(default_factory=dict)
    jobs: int = 1
    guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sweep(self) -> dict[str, Any]:
        """What `sweep.json` holds."""
        return {**self.head, "rows": self.rows}

    def find_kept(self, cells: Sequence[Cell]) -> list[tuple[Row, ExportSpec]]:
        """Take over the cells that are there; gives the others."""
        todo = []
        for row, cell in zip(self.rows, cells, strict=True):
            if cell.spec is None:
                self.log("failed", row, reason=row["reason"])
            elif not self.take_over(row):
                todo.append((row, cell.spec))
            else:
                self.log("kept", row)
        return todo

    def take_over(self, row: Row) -> bool:
        """Fill a row from its directory, if there is a whole one."""
        # By its key: the name says the axes too, which may have been others.
        for path in (self.directory / "cells").glob(f"*{row['key'][:_SUFFIX]}"):
            try:
                verdict = read_manifest(path)["verdict"]
                report = json.loads((path / "report.json").read_text(encoding="utf-8"))
            except (NoExportError, ManifestError, OSError, ValueError):
                continue  # damaged since: made anew
            row["status"], row["verdict"], row["report"] = "done", verdict, report
            row["directory"] = path.relative_to(self.directory).as_posix()
            row["seconds"] = sum(stage["seconds"] for stage in report["stages"])
            row["reason"] = "" if verdict == "pass" else _why(report, verdict)
            return True
        return False

    def start(self, row: Row) -> None:
        """Note that a cell is begun."""
        self.log("start", row)
        self.say(row, "start", "")

    def settle(self, row: Row, reason: str | None, seconds: float) -> None:
        """Note what became of a cell."""
        self.walls.append(seconds)
        self.running.pop(row["key"], None)
        if reason is not None or not self.take_over(row):
            row["status"], row["seconds"] = "failed", seconds
            row["reason"] = reason or "its directory is not whole"
        self.log(row["status"], row, seconds=round(seconds, 3), reason=row["reason"])
        self.save()

    def say(self, row: Row, stage: str, what: str) -> None:
        """Tell which stage a cell has reached."""
        self.running[row["key"]] = f"{name_of(row['cell'])}: {stage} {what}".strip()
        self.tell()

    def tell(self) -> None:
        """Tell how far all is."""
        settled = sum(row["status"] != "pending" for row in self.rows)
        left = len(self.rows) - settled
        known = self.walls or [row["seconds"] for row in self.rows if row["seconds"]]
        seconds = sum(known) / len(known) * left / self.jobs if known else None
        running = tuple(self.running.copy().values())
        self.on_progress(Progress(settled, len(self.rows), running, seconds))

    def save(self) -> None:
        """Write `sweep.json`; it is whole at any moment."""
        partial = self.directory / f".{SWEEP}.partial"
        text = strict_json(self.sweep) + "\n"
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.directory / SWEEP)
        except OSError as error:
            raise OutputError(f"cannot write {self.directory / SWEEP}: {error.strerror}") from error
        self.tell()

    def log(self, event: str, row: Row, **more: object) -> None:
        """Add a line to `sweep.log`."""
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "pid": os.getpid(),
            "event": event,
            "key": row["key"],
            "cell": row["cell"],
            **more,
        }
        with self.guard, (self.directory / "sweep.log").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _make(
    todo: Sequence[tuple[Row, ExportSpec]], table: _Table, *, jobs: int, threads: int
) -> None:
    """Make the cells, so many at a time."""
    table.jobs = jobs = min(jobs, len(todo))
    processes = CellProcesses()
    lock = table.directory / ".measuring"

    def make(row: Row, spec: ExportSpec) -> tuple[str | None, float]:
        table.start(row)
        started = time.perf_counter()
        measured = spec.threads or threads
        out = table.directory / "cells" / _directory_name(row)
        order = Order(spec, out, lock, max(1, measured // jobs), measured)
        reason = processes.run(order, lambda stage, what: table.say(row, stage, what))
        return reason, time.perf_counter() - started

    with ThreadPoolExecutor(jobs) as pool:
        futures: dict[Future[tuple[str | None, float]], Row] = {}
        try:
            futures = {pool.submit(make, row, spec): row for row, spec in todo}
            for future in as_completed(futures):
                table.settle(futures[future], *future.result())
        finally:
            for future in futures:
                future.cancel()
            processes.stop()


def _directory_name(row: Row) -> str:
    values = (
        "".join(c if c.isalnum() or c in "._" else "-" for c in str(value))
        for value in row["cell"].values()
    )
    return "-".join([*(value.strip("-.")[:32] for value in values), row["key"][:_SUFFIX]])


def _why(report: dict[str, Any], verdict: str) -> str:
    rows = (row for row in report["parity"] if row["verdict"] == verdict)
    return "; ".join(row["reason"] for row in rows if row.get("reason"))


@contextmanager
def _hold(directory: Path) -> Iterator[None]:
    """Make the directory, or go on with it; only one sweep at a time may."""
    try:
        if directory.is_dir() and any(directory.iterdir()) and not (directory / ".lock").exists():
            raise OutputError(
                f"{directory} is not empty and no sweep of tsformer",
                remedy="give another place with -o",
            )
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR, 0o666)  # before all else
        (directory / "cells").mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write {directory}: {error.strerror}", remedy="give another place with -o"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"another sweep is at work in {directory}", remedy="wait for it, or stop it"
            ) from error
        (directory / f".{SWEEP}.partial").unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)
