"""machines/NAME.json: what one machine found about an export, bound to the files that it ran.

The records are not among the files of the manifest, so they do not change an export.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from exporter.errors import OutputError, UsageError
from exporter.files.place import write_whole
from exporter.files.text import read_json
from exporter.results import Latency, Parity, Verdict, worst_verdict

MACHINES = "machines"
_VERSION = 1
_LONGEST_NAME = 64

_LEFT_OUT = ("per_input", "samples_ms")  # the record stays small

Row = TypeVar("Row", Parity, Latency)


@dataclass(frozen=True)
class Machine:
    """What one machine found: its environment, and the rows of the files as they are now.

    `files` maps the runtime of a row to the file that it ran.
    """

    name: str
    environment: Mapping[str, Any]
    parity: tuple[Parity, ...]
    latency: tuple[Latency, ...]
    files: Mapping[str, str]

    @property
    def verdicts(self) -> dict[tuple[str, str], Verdict]:
        """The worst verdict of each runtime and device; a runtime has a row for each output."""
        found: dict[tuple[str, str], list[Verdict]] = {}
        for row in self.parity:
            found.setdefault((row.runtime, row.device), []).append(row.verdict)
        return {who: worst_verdict(verdicts) for who, verdicts in found.items()}

    def ran(self, file: str) -> list[Parity]:
        """Return the judgements of one file."""
        return [row for row in self.parity if self.files.get(row.runtime) == file]


def present_rows(
    report: Mapping[str, Any], manifest: Mapping[str, Any], table: str
) -> list[dict[str, Any]]:
    """Return the rows of `parity` or `latency` of report.json that hold for the files of today.

    Rows of an engine that was built again since the export are left out.
    """
    same = report.get("engine", {}).get("sha256") == manifest["engine"].get("sha256")
    return [row for row in report[table] if same or not row["runtime"].startswith("tensorrt")]


@dataclass(frozen=True)
class Machines:
    """The records of an export that hold for its files, and notes about the other records."""

    found: tuple[Machine, ...] = ()
    notes: tuple[str, ...] = ()

    def judged(self, file: str) -> list[tuple[str, Parity]]:
        """Return name and row of every machine that ran a file."""
        rows = [(machine.name, row) for machine in self.found for row in machine.ran(file)]
        return [(name, row) for name, row in rows if row.verdict != "not-run"]


def machine_name(given: str | None) -> str:
    """Return the name of a record: the given name, or the name of this machine.

    Raises:
        UsageError: if the given name is no name of a file.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", given if given is not None else platform.node())
    name = name.strip(".-")[:_LONGEST_NAME]
    if given is not None and (not name or name != given):
        raise UsageError(
            "--name",
            got=repr(given),
            expected=f"at most {_LONGEST_NAME} letters, digits, _, . and -",
        )
    return name or "machine"


def record(
    directory: Path,
    manifest: Mapping[str, Any],
    name: str,
    environment: Mapping[str, Any],
    files: Mapping[str, str],
    rows: Sequence[Parity] | Sequence[Latency],
) -> Path:
    """Write what this machine found, beside what the same machine found before.

    Earlier rows stay if they are of the other kind, of the same files and of the same environment.

    Args:
        directory: The export.
        manifest: Its manifest, whose hashes the rows are bound to.
        name: The name of the machine.
        environment: The facts of this machine.
        files: Runtime -> the file that it ran.
        rows: Parity rows, or latency rows.

    Returns:
        The file that was written.

    Raises:
        OutputError: if it cannot be written.
    """
    old, _ = _read(directory / MACHINES / f"{name}.json", manifest)
    if old is None or _lasting(old.environment) != _lasting(environment):
        old = Machine(name, environment, (), (), {})
    kind = "latency" if isinstance(next(iter(rows), None), Latency) else "parity"
    new = replace(old, environment=environment, files={**old.files, **files}, **{kind: tuple(rows)})
    path = directory / MACHINES / f"{name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    write_whole(path, _to_json(new, manifest))
    return path


def read_machines(directory: Path, manifest: Mapping[str, Any]) -> Machines:
    """Read the records of an export; those of other files than the present ones become notes."""
    found, notes = [], []
    for path in sorted((directory / MACHINES).glob("*.json")):
        machine, note = _read(path, manifest)
        if machine is not None:
            found.append(machine)
        if note:
            notes.append(f"{MACHINES}/{path.name} {note}")
    return Machines(tuple(found), tuple(notes))


def _to_json(machine: Machine, manifest: Mapping[str, Any]) -> bytes:
    used = {row.runtime for row in (*machine.parity, *machine.latency)}
    files = {runtime: file for runtime, file in machine.files.items() if runtime in used}
    parity = [asdict(replace(row, per_input=())) for row in machine.parity]
    latency = [asdict(replace(row, samples_ms=())) for row in machine.latency]
    facts = {
        "record_version": _VERSION,
        "machine": machine.name,
        "environment": machine.environment,
        "runs": files,
        "sha256": {file: manifest["files"][file]["sha256"] for file in sorted({*files.values()})},
        "parity": parity,
        "latency": latency,
    }
    return (json.dumps(_finite(facts), indent=2, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:  # noqa: ANN401  # any JSON
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _read(path: Path, manifest: Mapping[str, Any]) -> tuple[Machine | None, str]:
    """Read one record; return what holds for the files of the manifest, and a note."""
    try:
        facts = read_json(path)
        runs, hashes = facts["runs"], facts["sha256"]
        parity, latency = rows_of(Parity, facts["parity"]), rows_of(Latency, facts["latency"])
        environment = dict(facts["environment"])
        _check_version(facts["record_version"])
        known = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        valid = {runtime: file for runtime, file in runs.items() if known.get(file) == hashes[file]}
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return None, f"cannot be read: {error!r}"
    judged = tuple(row for row in parity if row.runtime in valid)
    timed = tuple(row for row in latency if row.runtime in valid)
    lost = len(judged) + len(timed) < len(parity) + len(latency)
    note = "is about other files, so it does not count: record again there" if lost else ""
    if not judged and not timed:
        return None, note
    return Machine(path.stem, environment, judged, timed, valid), note


def _check_version(found: object) -> None:
    if found != _VERSION:
        raise ValueError(f"it has version {found!r}, this tsformer reads {_VERSION}")


def rows_of(kind: type[Row], entries: Iterable[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Read rows of JSON, without what they hold for each input and each run.

    Raises:
        ValueError: if a value has another type; `LookupError` if one is missing.
    """
    return tuple(kind(**_values(kind, entry)) for entry in entries)


def _values(kind: type[Row], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Take the fields of a row, and check that numbers are numbers and texts are texts."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name in _LEFT_OUT:
            continue
        required = field.default is MISSING
        value = entry[field.name] if required else entry.get(field.name, field.default)
        kind_of = {"str": str, "Verdict": str, "bool": bool}.get(str(field.type), int | float)
        if (required or value is not None) and not isinstance(value, kind_of):
            raise ValueError(f"{field.name} is {value!r}")
        values[field.name] = value
    return values


def _lasting(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides figures: all but the date and the load of the moment."""
    passing = ("date", "cores_busy_with_others")
    return {name: fact for name, fact in environment.items() if name not in passing}
