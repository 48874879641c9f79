"""Write what a command found on this machine into its export: `--record` and `--name`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.cli.terminal import say
from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.results import Latency, Parity


def check_record(name: str | None, *, record: bool) -> None:
    """Raise `UsageError` now, not after a long run, if the name is not valid or has no use."""
    from exporter.files.machines import machine_name

    if name is not None and not record:
        raise UsageError("--name is the name of a record", remedy="add --record")
    machine_name(name)


def write_record(
    directory: Path,
    name: str | None,
    environment: Mapping[str, Any],
    rows: Sequence[Parity] | Sequence[Latency],
) -> None:
    """Write the record and its page; say on stderr where it is."""
    from exporter.target.record import keep

    say(f"recorded in {keep(directory, name, environment, rows)}", 0)
