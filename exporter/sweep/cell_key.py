"""The key of a cell: a hash of everything that decides its export and its figures.

Two cells with one key are the same cell; a cell whose key is new is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.files.manifest import sha256
from exporter.spec import OPTIONS, ExportSpec

_PACKAGE = Path(__file__).parents[1]
# Options that name files: the content of the files decides, not their path.
_PATHS = tuple(name for name, declared in OPTIONS.items() if declared.path)
# Of `environment.describe()`: what decides a graph, an engine or a latency. Neither the date nor
# the system's own build number does.
_MACHINE = ("python", "cpu", "cores", "gpu", "packages", "tensorrt")


class Keys:
    """Makes keys; every file is read once.

    Args:
        environment: What `environment.describe()` gives.
    """

    def __init__(self, environment: Mapping[str, Any]) -> None:
        self._machine = {name: environment.get(name) for name in _MACHINE}
        self._code = code_hash()
        self._contents: dict[str, str] = {}

    def key(self, spec: ExportSpec, threads: int) -> str:
        """The key of one cell, timed with so many threads: SHA-256 in hexadecimal digits."""
        values = spec.to_dict()
        contents = {
            name: [(Path(path).name, self._content(path)) for path in _several(values.pop(name))]
            for name in _PATHS
        }
        facts = {
            "spec": values | {"threads": threads},
            "contents": contents,
            "machine": self._machine,
            "code": self._code,
        }
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _content(self, path: str) -> str:
        if path not in self._contents:
            self._contents[path] = content_hash(Path(path))
        return self._contents[path]


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of all files below a directory.

    What is not there or cannot be read has a hash too: the export will say what is wrong with it.
    """
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            listing = "".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files)
            return hashlib.sha256(listing.encode("utf-8", "backslashreplace")).hexdigest()
        return sha256(path)
    except OSError:
        return "unread"


def code_hash() -> str:
    """SHA-256 of our own code that builds and measures: all but the command line."""
    root = _PACKAGE.parent
    folders = (root / "model", _PACKAGE)
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    built = [file for file in files if _PACKAGE / "cli" not in file.parents]
    listing = "".join(f"{file.relative_to(root)} {sha256(file)}\n" for file in built)
    return hashlib.sha256(listing.encode()).hexdigest()


def _several(value: Any) -> list[str]:  # noqa: ANN401  # a path, several, or none
    return [] if value is None else [value] if isinstance(value, str) else list(value)
