"""Results -> report.json, report.md, report.html and the terminal's tables; pure rendering."""

from exporter.report.as_json import report_json, strict_json
from exporter.report.formats import human, mb, ms, ratio, sci
from exporter.report.pages import write_report
from exporter.report.terminal import ladder_table, recipe_table, summary_table
from exporter.report.words import (
    engine_line,
    engine_status,
    graph_line,
    headline,
    ladder_line,
    notes,
    who,
)
from exporter.results import overall_verdict

__all__ = [
    "engine_line",
    "engine_status",
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
