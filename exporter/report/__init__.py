"""Results -> report.json, report.md, report.html and the terminal's tables; pure rendering."""

from typing import TYPE_CHECKING, Any

from exporter.report.as_json import report_json, strict_json
from exporter.report.formats import human, mb, ms, ratio, sci
from exporter.report.terminal import ladder_table, recipe_table, summary_table
from exporter.report.words import (
    busy_line,
    engine_line,
    engine_status,
    fusion_line,
    graph_line,
    headline,
    ladder_line,
    notes,
    who,
)
from exporter.results import overall_verdict

if TYPE_CHECKING:
    from exporter.report.pages import write_report

__all__ = [
    "busy_line",
    "engine_line",
    "engine_status",
    "fusion_line",
    "graph_line",
    "headline",
    "human",
    "ladder_line",
    "ladder_table",
    "mb",
    "ms",
    "notes",
    "overall_verdict",
    "ratio",
    "recipe_table",
    "report_json",
    "sci",
    "strict_json",
    "summary_table",
    "who",
    "write_report",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Load the templates of pages only when one is written: tables are shown without jinja2."""
    if name != "write_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from exporter.report.pages import write_report

    return write_report
