"""Rows of this machine -> machines/NAME.json of an export, and the page that shows all machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.files.machines import MACHINES, machine_name, read_machines, record
from exporter.files.manifest import read_manifest
from exporter.files.place import whole_file
from exporter.report.pages import write_page
from exporter.results import Latency, Parity
from exporter.target.runtimes import files_run

PAGE = "index.html"


def keep(
    directory: Path,
    name: str | None,
    environment: Mapping[str, Any],
    rows: Sequence[Parity] | Sequence[Latency],
) -> Path:
    """Write what this machine found, and `machines/index.html` anew; return the record's path.

    Raises:
        UsageError: if the name is no name of a file.
        OutputError: if the record or the page cannot be written.
    """
    manifest = read_manifest(directory)
    path = record(
        directory, manifest, machine_name(name), environment, files_run(rows, manifest), rows
    )
    found = read_machines(directory, manifest)
    with whole_file(directory / MACHINES / PAGE) as page:
        write_page(page, "machines.html.jinja", title=directory.absolute().name, machines=found)
    return path
