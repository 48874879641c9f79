"""Check the place of a result before the work for it begins."""

from __future__ import annotations

import tempfile
from pathlib import Path

from exporter.errors import OutputError


def require_place(path: Path) -> None:
    """Raise `OutputError` unless a file can be written to a path; nothing is left there."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
