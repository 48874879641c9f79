"""Read TOML and JSON: a small text that a user wrote, or a file of an export."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_BYTES = 2**20  # of a file with options; a recipe of a large model has about 10 kB


def require_regular(path: Path) -> os.stat_result:
    """Check that a path is a file: a pipe blocks, and a device as /dev/zero has no end.

    Raises:
        OSError: if it is not, or is not there.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return status


def parse_text(path: Path, parse: Callable[[str], Any]) -> Any:  # noqa: ANN401  # of a user
    """Read and parse a file with options.

    Raises:
        OSError: if it is not a file, cannot be read, or is larger than `MOST_BYTES`.
        ValueError: if it is not UTF-8, does not parse, or is nested too deeply.
    """
    if require_regular(path).st_size > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_BYTES:,} bytes", str(path))
    return parse_nested(path.read_text(encoding="utf-8"), parse)


def read_json(path: Path) -> Any:  # noqa: ANN401  # of a directory of anybody
    """Read a JSON file of any size, as those of an export.

    Raises:
        OSError: if it is not a file, or cannot be read.
        ValueError: if it is not UTF-8, is no JSON, or is nested too deeply.
    """
    require_regular(path)
    return parse_nested(path.read_text(encoding="utf-8"), json.loads)


def parse_nested(text: str, parse: Callable[[str], Any]) -> Any:  # noqa: ANN401  # of a user
    """Parse a text; its depth is bounded by Python's stack.

    Raises:
        ValueError: if it does not parse, or is nested too deeply.
    """
    try:
        return parse(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
