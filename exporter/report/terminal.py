"""Results -> what the terminal shows, within 80 columns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from exporter.report.escape import one_line, without_control
from exporter.report.formats import ms, ratio, sci
from exporter.report.words import (
    WORDS,
    engine_line,
    graph_line,
    headline,
    ladder_line,
    notes,
    overall_verdict,
    rung_mark,
    runtimes,
)
from exporter.results import Ladder, Report

if TYPE_CHECKING:
    from exporter.proof.tune import Recipe


def summary_table(report: Report) -> RenderableType:
    """Say for the terminal what was built, how close it is and how fast, within 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("Runtime", "Verdict", "Error", "Allowed", "p50 ms", "p99 ms", "Speed"):
        justify = "left" if heading in ("Runtime", "Verdict") else "right"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading != "Runtime")
    for row in runtimes(report):
        close, fast = row.parity, row.latency
        word, _, style = WORDS[close.verdict] if close else ("-", "", "")
        table.add_row(
            _plain(re.sub("[(),]", "", row.name)),
            Text(word.lower(), style),
            *(sci(getattr(close, key, None)) for key in ("rel_l2", "tolerance")),
            *(ms(getattr(fast, key, None)) for key in ("p50_ms", "p99_ms")),
            ratio(fast.ratio_to_eager if fast else None),
        )
    word, mark, style = WORDS[overall_verdict(report.parity)]
    title = Text(f"{mark} {word}. ", style).append_text(_plain(headline(report)))
    lines = [*notes(report), graph_line(report), engine_line(report)]
    return Constrain(Group(title, table, *map(_plain, lines)), width=80)


def ladder_table(ladder: Ladder) -> RenderableType:
    """Say for the terminal where a graph leaves its model, module by module."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("Module", "Error", "Eager", "Max abs", "Cosine", "Remark"):
        side = "left" if heading in ("Module", "Remark") else "right"
        table.add_column(heading, justify=side, overflow="fold", no_wrap=True)
    for rung in ladder.rungs:
        figures = (sci(rung.rel_l2), sci(rung.floor_rel_l2), sci(rung.max_abs))
        mark = rung_mark(ladder, rung)
        table.add_row(
            rung.path, *figures, f"{rung.cosine:.6f}", mark, style="bold red" if mark else None
        )
    return Group(_plain(ladder_line(ladder)), table)


def recipe_table(recipe: Recipe) -> RenderableType:
    """Say for the terminal what to keep in float32, and what each module adds by itself."""
    line = (
        f"{recipe.precision}: error {sci(recipe.error)} within {recipe.budget:g} with "
        f"{len(recipe.keep_fp32)} modules in fp32 ({sci(recipe.error_without)} with none)"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Module", overflow="fold")
    table.add_column("Adds alone", justify="right")
    table.add_column("Kept in fp32")
    kept = {re.sub(r"\\(.)", r"\1", pattern) for pattern in recipe.keep_fp32}
    for path, error in recipe.alone.items():
        if path in kept:
            table.add_row(path, sci(error), "yes")
    return Group(_plain(line), table) if kept else _plain(line)


def _plain(text: str) -> Text:
    """Make terminal text of foreign text: no markup, no control characters."""
    return Text(without_control(one_line(text)))
