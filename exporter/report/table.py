"""Tables of foreign names for the terminal: no markup of theirs, no control characters."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text


def cell(text: object, style: str = "") -> Text:
    """Foreign text as it is, but for what would move the cursor or turn the direction of text."""
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(text)), style)


def table(left: Iterable[str], right: Iterable[str] = ()) -> Table:
    """An empty table with columns set to the left, then such with figures."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in left:
        made.add_column(heading, overflow="fold")
    for heading in right:
        made.add_column(heading, justify="right", no_wrap=True)
    return made
