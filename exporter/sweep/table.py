"""The rows of a sweep: their file, which is whole at any moment, and their log."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporter.errors import ManifestError, NoExportError
from exporter.files.manifest import GRAPH, read_manifest
from exporter.files.place import write_whole
from exporter.files.text import read_json
from exporter.report import strict_json
from exporter.sweep.grid import name_of

Row = dict[str, Any]

SWEEP, CELLS = "sweep.json", "cells"
KEY_DIGITS = 12  # of a key in a directory's name: enough to find it, short enough to read


@dataclass(frozen=True)
class Progress:
    """How far a sweep is: cells settled, all cells, what runs, and the seconds left if known."""

    settled: int
    total: int
    running: tuple[str, ...]
    seconds_left: float | None


def new_row(values: dict[str, Any], key: str, status: str, reason: str) -> Row:
    """The row of a cell that has not been made yet."""
    return {
        "cell": values,
        "key": key,
        "status": status,
        "verdict": None,
        "reason": reason,
        "directory": None,
        "seconds": None,
        "report": None,
    }


@dataclass
class Table:
    """The rows, their file and their log."""

    directory: Path
    head: dict[str, Any]
    on_progress: Callable[[Progress], None]
    rows: list[Row] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)  # seconds that the cells of this run took
    running: dict[str, str] = field(default_factory=dict)
    jobs: int = 1
    guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sweep(self) -> dict[str, Any]:
        """What `sweep.json` holds."""
        return {**self.head, "rows": self.rows}

    def take_over(self, row: Row) -> bool:
        """Fill a row from its directory, if there is a whole one."""
        # By its key: the name says the axes too, which may have been others.
        for path in (self.directory / CELLS).glob(f"*{row['key'][:KEY_DIGITS]}"):
            try:
                verdict = read_manifest(path, needs=(GRAPH, "report.json"))["verdict"]
                report = read_json(path / "report.json")
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
        write_whole(self.directory / SWEEP, f"{strict_json(self.sweep)}\n".encode())
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


def _why(report: dict[str, Any], verdict: str) -> str:
    rows = (row for row in report["parity"] if row["verdict"] == verdict)
    return "; ".join(row["reason"] for row in rows if row.get("reason"))
