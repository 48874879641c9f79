"""Read a TOML file that a user wrote."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from exporter.errors import TsformerError


def read_toml(path: Path, failure: type[TsformerError]) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        failure: if the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise failure(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise failure(f"{path} is not TOML: {error}") from error
