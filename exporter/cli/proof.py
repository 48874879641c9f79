"""Turn a verdict into an exit code: only a proven export gives 0."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import ParityError

if TYPE_CHECKING:
    from exporter.results import Report


def require_proof(verdict: str, report: Report, directory: Path, way_out: str = "") -> None:
    """Raise `ParityError` unless proven; `way_out` is the remedy for an ill-conditioned model."""
    if verdict == "pass":
        return
    from exporter.report import headline

    hint = way_out if verdict == "ill-conditioned" else ""
    raise ParityError(f"{verdict}: {headline(report)}", remedy=f"see {directory}{hint}")
