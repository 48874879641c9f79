"""The version of a file's format: a file of a newer tsformer is refused, and not read wrongly."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import NoExportError


def require_version(path: Path, got: object, newest: int) -> None:
    """Check that a file has a version that this tsformer reads: 1 to `newest`.

    Raises:
        NoExportError: if a newer tsformer wrote it; the message names both versions.
        ValueError: if no tsformer wrote it.
    """
    if not isinstance(got, int) or got < 1:
        raise ValueError(f"its version {got!r} cannot be understood")
    if got > newest:
        raise NoExportError(
            f"{path} is of a newer tsformer",
            got=f"version {got} of its format",
            expected=f"at most {newest}",
            remedy="use the tsformer that wrote it, or a newer one",
        )
