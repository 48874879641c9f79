"""The exit code of a verdict: only what is proven ends with 0."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import ParityError

if TYPE_CHECKING:
    from exporter.results import Report


def require_proof(verdict: str, report: Report, directory: Path, way_out: str = "") -> None:
    """Raise `ParityError` unless proven; `way_out` is what helps with an ill-conditioned model."""
    if verdict == "pass":
        return
    from exporter.report import headline

    hint = way_out if verdict == "ill-conditioned" else ""
    raise ParityError(f"{verdict}: {headline(report)}", remedy=f"see {directory}{hint}")
