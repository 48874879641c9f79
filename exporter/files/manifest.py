"""manifest.json: the facts that a program needs to use an export, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporter.errors import ManifestError, NoExportError
from exporter.files.staging import MANIFEST
from exporter.results import Report, overall_verdict
from model.config import Preprocessing

GRAPH = "model.onnx"


def write_manifest(
    directory: Path,
    report: Report,
    *,
    model: dict[str, Any],
    preprocessing: Preprocessing,
    labels: tuple[str, ...] | None,
) -> None:
    """Describe the files of a finished export; call this after all other files are written.

    Args:
        directory: The directory with the files of the export.
        report: The results of the stages.
        model: Family and configuration of the model.
        preprocessing: The preprocessing that turns clips into the model's input.
        labels: Names of the classes, if known.
    """
    files = sorted(path for path in directory.iterdir() if path.name != MANIFEST)
    manifest = {
        "manifest_version": 1,
        "verdict": overall_verdict(report.parity),
        "spec": report.spec,
        "model": model,
        "inputs": report.graph["inputs"],
        "outputs": report.graph["outputs"],
        "preprocessing": {
            "scale": "pixel / 255",
            "layout": "rgb" if len(preprocessing.mean) == 3 else "gray",
            "sampling": "uniform segment centres",
            "resize": "antialiased bilinear to short_side, or until it covers; then centre crop",
            **asdict(preprocessing),
        },
        "labels": labels,
        "engine": report.engine,
        "environment": report.environment,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
        },
    }
    text = json.dumps(manifest, indent=2, allow_nan=False, ensure_ascii=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_manifest(directory: Path, *, unchanged: bool = True) -> dict[str, Any]:
    """Read the manifest of an export and check every file against it.

    Args:
        directory: The export.
        unchanged: Require that every file exists and has the hash of the manifest.

    Raises:
        NoExportError: if the manifest is missing or cannot be read.
        ManifestError: if the manifest is damaged, or a file is missing or changed.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        for part in ("spec", "model", "engine"):
            manifest[part].keys()
    except OSError as error:
        raise NoExportError(
            f"{directory} is not an export of tsformer: cannot read {MANIFEST}: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{path} is damaged: {error!r}") from error
    if GRAPH not in files:
        raise ManifestError(f"{path} is damaged: it does not list {GRAPH}")
    for name, expected in files.items() if unchanged else ():
        file = directory / Path(name).name
        if not file.is_file():
            raise ManifestError(f"{directory} lacks {name}", remedy="export it again")
        if (got := sha256(file)) != expected:
            raise ManifestError(
                f"{file} was changed since it was exported",
                got=f"sha256 {got[:12]}",
                expected=expected[:12],
                remedy="export it again",
            )
    return manifest


def sha256(path: Path) -> str:
    """Hash a file without reading it into memory as a whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_checkpoint(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and hashes of a directory's files."""
    if path.is_file():
        return sha256(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    listing = "".join(f"{file.name} {sha256(file)}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()
