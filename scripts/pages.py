"""Markdown pages of the project: tables, and marked blocks that a script writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def list_pages() -> list[Path]:
    """README.md and the pages of the guide."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a `|` within a cell is escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(map(_escape, cells))} |\n" for cells in lines)


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


def fill(page: str, blocks: Mapping[str, str], script: str) -> str:
    """Replace the blocks that `script` writes and that the page has marks for (pure).

    Raises:
        ValueError: if a block is begun and not ended.
    """
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: written by {script} -->\n", f"<!-- /{name} -->"
        before, marked, rest = page.partition(begin)
        if not marked:
            continue
        _, ended, after = rest.partition(end)
        if not ended:
            raise ValueError(f"the block {name!r} is begun and not ended")
        # Markdown takes a mark for a part of the table above it without an empty line between.
        page = f"{before}{begin}\n{block.strip()}\n\n{end}{after}"
    return page


def write(blocks: Mapping[str, str], script: str) -> None:
    """Write the blocks of a script into every page that has marks for them."""
    for path in list_pages():
        page = path.read_text(encoding="utf-8")
        path.write_text(fill(page, blocks, script), encoding="utf-8")
