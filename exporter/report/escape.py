"""Foreign text -> text that is inert where it is shown: names of clips, messages of libraries.

The one place that decides what a terminal, Markdown or HTML may show of text that others wrote.
"""

from __future__ import annotations

import html as standard_html
import re

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Control characters move the cursor of a terminal; some of Unicode turn the direction of text.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"  # Hindi, Persian and emoji need them


def without_control(text: str) -> str:
    """Replace control characters, except the end of a line."""
    return _CONTROL.sub(_REPLACEMENT, text)


def printable(text: object) -> str:
    """Replace all that a terminal cannot print, lone bytes of a file name too; keep line ends."""
    keep = "\n" + _JOINERS
    return "".join(c if c.isprintable() or c in keep else _REPLACEMENT for c in str(text))


def one_line(text: object) -> str:
    """Join the lines of a text."""
    return " ".join(str(text).split())


def clause(text: object) -> str:
    """Make a part of a sentence of a sentence."""
    return one_line(text).rstrip(".")


def html(text: object) -> str:
    """Escape one line of text for HTML, also inside an attribute."""
    return standard_html.escape(without_control(one_line(text)))


def markdown(value: object) -> str:
    """Escape one line of text for Markdown, also inside a table."""
    text = standard_html.escape(without_control(one_line(value)), quote=False)
    return re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def code(value: object) -> str:
    """Show text as code in a Markdown table: no mention or link comes alive there.

    Text with tags is escaped instead, because not every reader of Markdown leaves them in code.
    """
    if set("<>&") & set(str(value)):
        return markdown(value)
    text = without_control(one_line(value)).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"
