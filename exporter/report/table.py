"""Tables and lines of text for the terminal; foreign text in them is shown, never interpreted."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Column, Table
from rich.text import Text

from exporter.report.escape import one_line, printable

WIDTH = 80  # columns that a result may take


def plain(text: object, style: str = "") -> Text:
    """Text for the terminal, without markup and without control characters."""
    return Text(printable(text), style)


def plain_line(text: object, style: str = "") -> Text:
    """The same as one line."""
    return plain(one_line(text), style)


def texts(*headings: object) -> list[Column]:
    """Columns of text that may be folded."""
    return [Column(plain_line(heading), overflow="fold") for heading in headings]


def marks(*headings: object) -> list[Column]:
    """Columns of a word or two that stay whole."""
    return [Column(plain_line(heading), no_wrap=True) for heading in headings]


def figures(*headings: object) -> list[Column]:
    """Columns of numbers that stay whole, set to the right."""
    return [Column(plain_line(heading), justify="right", no_wrap=True) for heading in headings]


class _PlainTable(Table):
    """A table whose cells are plain text: `rich` would interpret markup in them."""

    def add_row(self, *cells: Any, **options: Any) -> None:  # noqa: ANN401 - as in rich
        super().add_row(*(plain(c) if isinstance(c, str) else c for c in cells), **options)


def table(*columns: Column, gap: int = 2) -> Table:
    """An empty table whose `add_row` takes foreign text; `gap` is the space between columns."""
    padding = (0, gap - 1, 0, 0)  # the box itself separates columns by one space
    return _PlainTable(*columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=padding)
