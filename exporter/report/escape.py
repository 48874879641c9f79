"""Foreign text -> text that is inert where it is shown: names of clips, messages of libraries."""

from __future__ import annotations

import html
import re

from markupsafe import Markup

# What moves a terminal's cursor or turns the direction of text has no place in a report.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def without_control(text: str) -> str:
    """Replace control characters, but for the end of a line."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: object) -> str:
    """Join the lines of a text."""
    return " ".join(str(text).split())


def clause(text: object) -> str:
    """Make a part of a sentence of a sentence."""
    return one_line(text).rstrip(".")


def markdown(value: object) -> Markup:
    """Escape foreign text for one line of Markdown, also inside a table."""
    text = html.escape(one_line(value), quote=False)
    return Markup(re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", text))


def code(value: object) -> Markup:
    """Show foreign text as code in a Markdown table: no mention, link or tag comes alive there."""
    text = one_line(value).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}")
