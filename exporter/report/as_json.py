"""Results -> JSON that every parser reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from exporter.results import Report

# A list of numbers that is spread over lines. A JSON string cannot match: it has no line ends.
_LONG_LIST = re.compile(r"\[\n([^\[\]{}\"]+)\n *\]")


def report_json(report: Report) -> str:
    """Give the report as JSON."""
    return strict_json(report.to_dict())


def strict_json(values: Mapping[str, Any]) -> str:
    """Write JSON that strict parsers read: NaN and infinity become null."""
    text = json.dumps(_strict(values), indent=2, allow_nan=False, ensure_ascii=False)
    return _LONG_LIST.sub(lambda found: f"[{' '.join(found[1].split())}]", text)


def _strict(value: object) -> object:
    """Turn a value into one that strict JSON can hold: NaN and infinity become null."""
    from numpy import generic  # imported here, because the import takes as long as all of --help

    if isinstance(value, generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {_strict(str(key)): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()
