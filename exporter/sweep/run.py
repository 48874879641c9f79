"""Export every cell of a grid. A finished cell is kept and never made again.

`sweep.json` has one row for each cell, and its content is complete at any time. `cells/` has one
export directory for each cell. `sweep.log` has one line for each start and each end of a cell, and
lines are only appended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import OutputError, UsageError
from exporter.files.lock import Lock, have_locks
from exporter.spec import ExportSpec
from exporter.sweep.cell_key import Keys
from exporter.sweep.cell_process import CellProcesses, Order
from exporter.sweep.grid import Grid, name_of
from exporter.sweep.page import write_sweep_report
from exporter.sweep.results import SWEEP_VERSION
from exporter.sweep.table import CELLS, KEY_DIGITS, Progress, Row, Table, new_row


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: its values, and its spec or the reason why it has none."""

    values: dict[str, Any]
    spec: ExportSpec | None
    problem: str = ""


def sweep(
    grid: Grid,
    cells: Sequence[Cell],
    directory: Path,
    *,
    jobs: int = 1,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> dict[str, Any]:
    """Make every missing cell and the report; return the content of `sweep.json`.

    Each cell runs in a separate process. Several jobs share the threads of the machine. But a cell
    is timed with all threads, and no other cell works at that time.

    Args:
        grid: The grid of the cells, for the record.
        cells: The cells to export.
        directory: The directory of the sweep. An existing sweep is continued.
        jobs: Number of cells to make at the same time.
        on_progress: Called with the progress, from several threads.

    Raises:
        UsageError: if two cells are the same export, or cells cannot wait for each other.
        OutputError: if the directory cannot be used.
    """
    if jobs > 1 and not have_locks():
        raise UsageError(
            "--jobs needs locks between processes, which this system lacks",
            got=jobs,
            expected="1: else a cell would be timed while others work",
        )
    import torch  # imported here, because the import is slow and only this function needs it

    from exporter.machine import environment

    facts, threads = environment.describe(), torch.get_num_threads()
    rows = _rows(cells, Keys(facts), threads)  # first: a grid that is refused leaves nothing
    with _hold(directory):
        table = Table(directory, _describe(grid, facts), on_progress)
        table.rows = rows
        todo = _find_unmade(table, cells)
        table.save()
        if todo:
            _make(todo, table, jobs=jobs, threads=threads)
        write_sweep_report(table.sweep, directory)
        return table.sweep


def _describe(grid: Grid, facts: dict[str, Any]) -> dict[str, Any]:
    axes = {name: list(values) for name, values in grid.axes.items()}
    return {
        "sweep_version": SWEEP_VERSION,
        "axes": axes,
        "base": dict(grid.base),
        "environment": facts,
    }


def _rows(cells: Sequence[Cell], keys: Keys, threads: int) -> list[Row]:
    rows: list[Row] = []
    for cell in cells:
        key = keys.key(cell.spec, cell.spec.threads or threads) if cell.spec else ""
        same = next((row for row in rows if key and row["key"] == key), None)
        if same:
            raise UsageError(
                "two cells are the same export",
                got=f"{name_of(same['cell'])} and {name_of(cell.values)}",
                remedy="remove one of the values",
            )
        status = "pending" if cell.spec else "failed"
        rows.append(new_row(cell.values, key, status, cell.problem))
    return rows


def _find_unmade(table: Table, cells: Sequence[Cell]) -> list[tuple[Row, ExportSpec]]:
    """Fill the rows of the finished cells; return the other cells."""
    todo = []
    for row, cell in zip(table.rows, cells, strict=True):
        if cell.spec is None:
            table.log("failed", row, reason=row["reason"])
        elif not table.take_over(row):
            todo.append((row, cell.spec))
        else:
            table.log("kept", row)
    return todo


def _make(todo: Sequence[tuple[Row, ExportSpec]], table: Table, *, jobs: int, threads: int) -> None:
    """Make the cells, `jobs` at a time."""
    table.jobs = jobs = min(jobs, len(todo))
    processes = CellProcesses()
    lock = table.directory / ".measuring"

    def make(row: Row, spec: ExportSpec) -> tuple[str | None, float]:
        table.start(row)
        started = time.perf_counter()
        measured = spec.threads or threads
        out = table.directory / CELLS / _directory_name(row)
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
    return "-".join([*(value.strip("-.")[:32] for value in values), row["key"][:KEY_DIGITS]])


@contextmanager
def _hold(directory: Path) -> Iterator[None]:
    """Make the directory or reuse it, and lock it: only one sweep at a time may use it."""
    try:
        if directory.is_dir() and any(directory.iterdir()) and not (directory / ".lock").exists():
            raise OutputError(
                f"{directory} is not empty and no sweep of tsformer",
                remedy="give another place with -o",
            )
        directory.mkdir(parents=True, exist_ok=True)
        lock = Lock(directory / ".lock", create=True)  # before all else
        (directory / CELLS).mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write {directory}: {error.strerror}", remedy="give another place with -o"
        ) from error
    with lock:
        try:
            lock.exclusive(wait=False)
        except OSError as error:
            raise OutputError(
                f"another sweep is at work in {directory}", remedy="wait for that sweep, or stop it"
            ) from error
        yield
