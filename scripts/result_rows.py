"""Rows of a results file that is measured in parts: read, merge and write them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Key = Callable[[Row], tuple[Any, ...]]  # what identifies a row


def read(path: Path) -> list[Row]:
    """Read the rows that are there already."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def merge(rows: Sequence[Row], new: Sequence[Row], key: Key) -> list[Row]:
    """Put new rows in the place of those of the same key, all in the order of the keys (pure)."""
    replaced = {key(row) for row in new}
    return sorted([*(row for row in rows if key(row) not in replaced), *new], key=key)


def add(path: Path, new: Sequence[Row], key: Key) -> None:
    """Merge new rows into the file, and replace it at once, so that no reader sees a part."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    rows = merge(read(path), new, key)
    partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
