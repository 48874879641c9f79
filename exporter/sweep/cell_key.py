"""The key of a cell: a hash of everything that decides its export and its measurements.

Two cells with the same key are the same cell. A cell with a new key must be made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.errors import TsformerError
from exporter.files.adapter import base_of
from exporter.files.hub import fetch, parse_name
from exporter.files.manifest import hash_files, sha256
from exporter.inputs.clip_list import listed_clips
from exporter.spec import OPTIONS, ExportSpec

_PACKAGE = Path(__file__).parents[1]
# Options that name files. The key contains the content of the files, not their location.
_PATHS = tuple(name for name, declared in OPTIONS.items() if declared.path)
_UNREAD = "unread"
# Entries of `environment.describe()` that decide a graph, an engine or a latency. The date and the
# build number of the operating system do not.
_MACHINE = ("python", "cpu", "cores", "gpu", "packages", "tensorrt")


class Keys:
    """Makes keys. Each file is read only once.

    Args:
        environment: The result of `environment.describe()`.
    """

    def __init__(self, environment: Mapping[str, Any]) -> None:
        self._machine = {name: environment.get(name) for name in _MACHINE}
        self._code = code_hash()
        self._contents: dict[str, tuple[str, str]] = {}

    def key(self, spec: ExportSpec, threads: int) -> str:
        """Return the key of a cell that is timed with `threads` threads: SHA-256 as hex digits."""
        values = spec.to_dict()
        contents = {
            name: [self._content(path) for path in _as_list(values.pop(name))] for name in _PATHS
        }
        listed = Path(spec.eval or "")
        if listed.is_file():
            contents["clips"] = [self._content(str(clip)) for clip in _clips_of(listed)]
        if base := _base_of(spec):
            contents["base_model"] = [self._content(base)]
        facts = {
            "spec": values | {"threads": threads},
            "contents": contents,
            "machine": self._machine,
            "code": self._code,
        }
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _content(self, path: str) -> tuple[str, str]:
        """Return the name of a file and its hash; of what is no file, all of it, and its commit."""
        if path not in self._contents:
            found = content_hash(Path(path))
            unread = found == _UNREAD
            self._contents[path] = (path, _commit(path)) if unread else (Path(path).name, found)
        return self._contents[path]


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and hashes of all files below a directory.

    The result for a missing or unreadable file is "unread". The export reports the error later.
    """
    try:
        if path.is_dir():
            return hash_files(path, path.rglob("*"))
        return sha256(path)
    except OSError:
        return _UNREAD


def _commit(path: str) -> str:
    """Return the commit of a model on the hub, or "": the export reports what is wrong later."""
    name = parse_name(path)
    with contextlib.suppress(TsformerError):
        return fetch(name).commit if name else ""
    return ""


def _base_of(spec: ExportSpec) -> str | None:
    """Return where the model lies that an adapter changes, or None."""
    if spec.checkpoint is None or not (base := base_of(spec.checkpoint, spec.config)):
        return None
    below = spec.checkpoint / base
    return str(below) if below.is_dir() else base


def _clips_of(listed: Path) -> list[Path]:
    with contextlib.suppress(TsformerError):
        return listed_clips(listed)
    return []


def code_hash() -> str:
    """Return the SHA-256 of this project's code, without the command line.

    The command line neither builds nor measures anything.
    """
    root = _PACKAGE.parent
    folders = (root / "model", _PACKAGE)
    files = (file for folder in folders for file in folder.rglob("*.py"))
    return hash_files(root, (file for file in files if _PACKAGE / "cli" not in file.parents))


def _as_list(value: Any) -> list[str]:  # noqa: ANN401  # a path, a list of paths, or None
    return [] if value is None else [value] if isinstance(value, str) else list(value)
