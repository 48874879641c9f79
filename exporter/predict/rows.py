"""Rows of results in a file that survives a kill: JSON lines, only appended; or Parquet.

Beside `rows.jsonl` lies `rows.jsonl.job.json`, which says what made the rows: rows of another model
are never appended. The rows of `rows.parquet` are in `rows.parquet.jsonl` until the end, because
Parquet cannot be appended to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from exporter.errors import OutputError
from exporter.errors.install import missing_package
from exporter.files.lock import Lock
from exporter.files.place import whole_file, write_whole
from exporter.files.text import parse_nested, read_json
from exporter.predict.batches import in_groups
from exporter.runners.base import Closing

PARQUET = ".parquet"
_ROWS_AT_A_TIME = 10_000  # rows in memory while Parquet is written
# What decides the rows, in words that a user knows; of all else the name says it.
_OTHER = {
    "classes_of_a_row": "another --top",
    "features_of_a_row": "another choice of --features",
    "clips": "other clips",
    "labels": "other labels",
    "models": "other models",
    "runtimes": "other runtimes",
}


class RowLog(Closing):
    """A file of JSON lines that one process appends to.

    Args:
        path: The file; one that exists is continued, without a last line that is torn. Where an
            error ends the work before the first row, no file is left.
        made_by: What decides the rows; values that JSON can hold.

    Raises:
        OutputError: if the file cannot be used, another process appends to it, or its rows were
            made by something else.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any]) -> None:
        self.path = path
        with ExitStack() as undo:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = undo.enter_context(Lock(path, create=True))
                _lock_alone(self._lock, path)
                _check_job(path, made_by)  # no other process writes it meanwhile
                _cut_torn_line(path)
                self._file = path.open("ab", buffering=0)
            except OSError as error:
                raise OutputError(f"{path} cannot be written: {error.strerror}") from error
            undo.pop_all()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that are there.

        Raises:
            OutputError: if a line is no row.
        """
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = parse_nested(line.decode(), json.loads)
                    row["clip"].encode()
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    what = f"{self.path}:{number} is no row of tsformer"
                    raise OutputError(what, remedy="name another file with -o") from error
                yield row

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows by one write of whole lines."""
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        left = memoryview(lines.encode())
        while left:
            left = left[os.write(self._file.fileno(), left) :]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not self.path.stat().st_size:
            _job_of(self.path).unlink(missing_ok=True)
            self.path.unlink()
        super().__exit__(kind, error, trace)

    def close(self) -> None:
        """Bring the rows to the disk, and let other processes append."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._lock.close()


def _lock_alone(lock: Lock, path: Path) -> None:
    try:
        lock.exclusive(wait=False)
    except OSError as error:
        raise OutputError(f"another process appends to {path}", remedy="wait for it") from error


def _job_of(path: Path) -> Path:
    """Return the file that says what makes the rows."""
    return path.with_name(f"{path.name}.job.json")


def _check_job(path: Path, made_by: Mapping[str, Any]) -> None:
    """Write what makes the rows, or compare it with what made the rows that are there."""
    job, has_rows = _job_of(path), path.stat().st_size > 0
    if not (job.exists() and has_rows):
        if has_rows:
            raise OutputError(f"{path} has no rows of tsformer", remedy="name another file with -o")
        write_whole(job, json.dumps(made_by, indent=2).encode() + b"\n")
        return
    try:
        known = read_json(job)
        other = [name for name in {**known, **made_by} if known.get(name) != made_by.get(name)]
    except (ValueError, TypeError) as error:
        raise OutputError(f"{job} is damaged", remedy=f"remove it and {path}") from error
    if other:
        raise OutputError(
            f"{path} has rows that were made with {_OTHER.get(other[0], f'another {other[0]}')}",
            got=str(made_by.get(other[0], "none"))[:80],
            expected=str(known.get(other[0], "none"))[:80],
            remedy="name another file with -o",
        )


def _cut_torn_line(path: Path) -> None:
    """Remove what follows the last line break: a process was killed while it wrote."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                file.truncate(start + place + 1)
                return
            end = start
        file.truncate(0)


def log_path(out: Path) -> Path:
    """Return the file of JSON lines of an output."""
    return out.with_name(f"{out.name}.jsonl") if out.suffix == PARQUET else out


def require_parquet() -> None:
    """Raise `MissingPackageError` unless Parquet can be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_package("pyarrow", "a .parquet file") from error


def write_parquet(
    rows: Iterable[Mapping[str, Any]], out: Path, *, features: int | None = None
) -> None:
    """Write all rows of clips as one Parquet file, which appears whole or not at all.

    Args:
        rows: The rows.
        out: The file.
        features: Values of the column `features`, lists of this size; None if there is no such
            column.

    Raises:
        OutputError: if the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    columns = [
        ("clip", text),
        ("classes", pa.list_(text)),
        ("scores", pa.list_(pa.float64())),
        ("note", text),
        ("error", text),
        ("seconds", pa.float64()),
    ]
    if features is not None:
        columns.append(("features", pa.list_(pa.float32(), features)))
    schema = pa.schema(columns)
    with whole_file(out) as partial, pq.ParquetWriter(partial, schema) as writer:
        for group in in_groups(rows, _ROWS_AT_A_TIME):
            writer.write_table(pa.Table.from_pylist([dict(row) for row in group], schema))
