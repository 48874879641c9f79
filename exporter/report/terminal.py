"""Results -> the terminal, within 80 columns."""

from __future__ import annotations

import re

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.text import Text

from exporter.report.formats import ms, ratio, sci
from exporter.report.table import WIDTH, figures, marks, plain_line, table, texts
from exporter.report.words import (
    WORDS,
    engine_line,
    graph_line,
    headline,
    ladder_line,
    notes,
    rung_mark,
    runtimes,
)
from exporter.results import Ladder, Recipe, Report, overall_verdict


def summary_table(report: Report) -> RenderableType:
    """Show what was built, how close it is and how fast, within 80 columns."""
    measured = figures("Error", "Allowed", "p50 ms", "p99 ms", "Speed")
    made = table(*texts("Runtime"), *marks("Verdict"), *measured)
    for row in runtimes(report):
        close, fast = row.parity, row.latency
        word, _, style = WORDS[close.verdict] if close else ("-", "", "")
        made.add_row(
            re.sub("[(),]", "", row.name),
            Text(word.lower(), style),
            *(sci(getattr(close, key, None)) for key in ("rel_l2", "tolerance")),
            *(ms(getattr(fast, key, None)) for key in ("p50_ms", "p99_ms")),
            ratio(fast.ratio_to_eager if fast else None),
        )
    word, mark, style = WORDS[overall_verdict(report.parity)]
    title = Text(f"{mark} {word}. ", style).append_text(plain_line(headline(report)))
    lines = [*notes(report), graph_line(report), engine_line(report)]
    return Constrain(Group(title, made, *map(plain_line, lines)), width=WIDTH)


def ladder_table(ladder: Ladder) -> RenderableType:
    """Show the error of a graph module by module."""
    made = table(
        *texts("Module"), *figures("Error", "Eager", "Max abs", "Cosine"), *marks("Remark")
    )
    for rung in ladder.rungs:
        errors = (sci(rung.rel_l2), sci(rung.floor_rel_l2), sci(rung.max_abs))
        mark = rung_mark(ladder, rung)
        made.add_row(
            rung.path, *errors, f"{rung.cosine:.6f}", mark, style="bold red" if mark else None
        )
    return Group(plain_line(ladder_line(ladder)), made)


def recipe_table(recipe: Recipe) -> RenderableType:
    """Show which modules to keep in float32, and the error that each adds alone."""
    line = (
        f"{recipe.precision}: error {sci(recipe.error)} within {recipe.budget:g} with "
        f"{len(recipe.keep_fp32)} modules in fp32 ({sci(recipe.error_without)} with none)"
    )
    made = table(*texts("Kept in fp32"), *figures("Adds alone"))
    kept = {re.sub(r"\\(.)", r"\1", pattern) for pattern in recipe.keep_fp32}
    for path, error in recipe.alone.items():
        if path in kept:
            made.add_row(path, sci(error))
    return Group(plain_line(line), made) if kept else plain_line(line)
