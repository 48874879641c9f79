"""Read a TOML file that a user wrote."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from exporter.errors import TsformerError
from exporter.files.text import parse_text


def read_toml(path: Path, failure: type[TsformerError]) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        failure: if the file cannot be read, or is not TOML.
    """
    try:
        return parse_text(path, tomllib.loads)
    except OSError as error:
        raise failure(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not TOML, or nested too deeply
        raise failure(f"{path} is not TOML: {error}") from error
