"""Templates -> pages: self-contained HTML that loads nothing, and Markdown without HTML."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from exporter.report import escape, formats, plots, words
from exporter.report.as_json import report_json
from exporter.report.png import png_uri
from exporter.results import Report, Sheet, overall_verdict

_FILTERS = (
    formats.sci,
    formats.ms,
    formats.seconds,
    formats.mb,
    formats.gflop,
    formats.ratio,
    formats.percent,
    formats.accuracy,
    formats.cosine,
    formats.label,
    formats.human,
    words.who,
    words.ladder_line,
    words.engine_status,
    words.worst_row,
    words.worst_input,
    words.fastest,
)
_PLOTS = (
    plots.parity_plot,
    plots.ladder_plot,
    plots.latency_plot,
    plots.stages_plot,
    plots.accuracy_plot,
)


def write_report(report: Report, directory: Path, sheets: Sequence[Sheet] = ()) -> None:
    """Write `report.json`, `report.md` and `report.html` into an existing directory.

    The page shows the contact sheets of the clips.
    """
    verdict = overall_verdict(report.parity)
    lines = [*words.notes(report), words.graph_line(report), words.engine_line(report)]
    facts = {
        "report": report,
        "verdict": verdict,
        "headline": words.headline(report),
        "notes": lines,
        "explanation": words.EXPLANATION,
        "runtimes": words.runtimes(report),
        "sheets": sheets,
    }
    write_page(directory / "report.html", "report.html.jinja", **facts)
    write_page(directory / "report.md", "report.md.jinja", **facts)
    _write(directory / "report.json", report_json(report) + "\n")


def write_page(path: Path, template: str, **facts: object) -> None:
    """Render a template with its facts into a file."""
    _write(path, escape.without_control(_environment().get_template(template).render(**facts)))


def _write(path: Path, text: str) -> None:
    # The name of a file may hold bytes that are not text: show them escaped, do not fail.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("exporter.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {function.__name__: function for function in _FILTERS}
    # Markup keeps jinja from escaping for HTML what is escaped for Markdown.
    environment.filters["md"] = lambda value: Markup(escape.markdown(value))
    environment.filters["code"] = lambda value: Markup(escape.code(value))
    environment.filters["png_uri"] = lambda pixels: Markup(png_uri(pixels))  # base64
    environment.globals |= {function.__name__: function for function in _PLOTS}
    environment.globals |= {
        "words": {verdict: word for verdict, (word, _, _) in words.WORDS.items()},
        "marks": {verdict: mark for verdict, (_, mark, _) in words.WORDS.items()},
        "rung_mark": words.rung_mark,
        "style": _own("page.css"),
        "script": _own("sort.js"),
        "script_hash": _hash(_own("sort.js")),
    }
    return environment


def _own(name: str) -> Markup:
    text = files("exporter.report").joinpath("templates", name).read_text(encoding="utf-8")
    return Markup(text)  # not foreign: a file of this package


def _hash(script: str) -> str:
    """The hash by which the policy of a page allows one script, and no other, to run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
