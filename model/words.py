"""Words of messages."""

from __future__ import annotations

from collections.abc import Iterable


def listed(words: Iterable[object], most: int = 4) -> str:
    """Write the first few of many names, and how many follow: `a, b and 3 more`."""
    names = list(map(str, words))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
