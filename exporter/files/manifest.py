"""manifest.json: the facts that a program needs to use an export, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporter.errors import ManifestError, NoExportError
from exporter.files.staging import MANIFEST
from exporter.files.text import read_json
from exporter.files.version import require_version
from exporter.results import Report, overall_verdict
from model.preprocessing import Preprocessing

VERSION = 1  # of the manifest; a newer one may hold what this tsformer does not understand
MODULE = "module"  # the family of a module that is not of this package
GRAPH = "model.onnx"
ENGINE_GRAPH = "model.tensorrt.onnx"
OPENVINO_GRAPH = "model.openvino.onnx"
ENGINE = "model.engine"
# The facts of the graph that a report shows without reading it.
_OF_THE_GRAPH = ("opset", "nodes", "parameters", "file_bytes", "sha256", "inputs", "outputs")
_OF_SOME_GRAPHS = ("openvino_bytes",)


def write_manifest(
    directory: Path,
    report: Report,
    *,
    model: dict[str, Any],
    preprocessing: Preprocessing | None,
    labels: tuple[str, ...] | None,
    task: str,
    floors: Mapping[str, float | None],
) -> None:
    """Describe the files of a finished export; call this after all other files are written.

    Args:
        directory: The directory with the files of the export.
        report: The results of the stages.
        model: Family and configuration of the model.
        preprocessing: The preprocessing that turns clips into the model's input, if it takes clips.
        labels: Names of the classes, if known.
        task: What the logits mean.
        floors: Rounding form -> the floor in `reference.npz`, None if it is not finite.
    """
    files = sorted(path for path in directory.iterdir() if path.name != MANIFEST)
    manifest = {
        "manifest_version": VERSION,
        "verdict": overall_verdict(report.parity),
        "spec": report.spec,
        "model": model,
        "inputs": report.graph["inputs"],
        "outputs": report.graph["outputs"],
        "preprocessing": preprocessing
        and {
            "scale": "pixel / 255",
            "layout": preprocessing.channel_order if len(preprocessing.mean) == 3 else "gray",
            "described": preprocessing.sentences,
            **asdict(preprocessing),
        },
        "labels": labels,
        "task": task,
        "engine": report.engine,
        "graph": {name: report.graph[name] for name in _OF_THE_GRAPH}
        | {name: report.graph[name] for name in _OF_SOME_GRAPHS if name in report.graph},
        "floors": floors,
        "environment": report.environment,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
        },
    }
    (directory / MANIFEST).write_bytes(manifest_bytes(manifest))


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Give the content of manifest.json."""
    text = json.dumps(manifest, indent=2, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode(errors="backslashreplace")


def _what_to_give(path: Path) -> str | None:
    """Say what to give in place of a path that is no export, or `None` if there is nothing."""
    if not path.exists():
        return None
    if (path.parent / MANIFEST).is_file():
        return f"give {path.parent}"
    if inner := sorted(file.parent for file in path.glob(f"*/{MANIFEST}")):
        return f"give one of the exports in it, as {inner[0]}"
    return f"a trained model is exported first: tsformer export --checkpoint {path}"


def read_manifest(
    directory: Path, *, unchanged: bool = True, needs: Collection[str] = ()
) -> dict[str, Any]:
    """Read the manifest of an export, and check every file that is there against it.

    Args:
        directory: The export. Files that a command does not need may be missing.
        unchanged: Require that every file that is there has the hash of the manifest.
        needs: Files that must be there.

    Raises:
        NoExportError: if the manifest is missing, cannot be read, or is of a newer tsformer.
        ManifestError: if the manifest is damaged, a needed file is missing, or a file was changed.
    """
    path = directory / MANIFEST
    try:
        manifest = read_json(path)
        require_version(path, manifest["manifest_version"], VERSION)
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        "".join(files.values())  # hashes are texts
        for part in ("spec", "model", "engine"):
            manifest[part].keys()
        manifest.get("floors", {}).keys()  # older exports do not have them
    except OSError as error:
        raise NoExportError(
            f"{directory} is not an export of tsformer: cannot read {MANIFEST}: {error.strerror}",
            remedy=_what_to_give(directory),
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{path} is damaged: {error!r}") from error
    if GRAPH not in files:
        raise ManifestError(f"{path} is damaged: it does not list {GRAPH}")
    if outside := [name for name in files if Path(name).name != name]:
        raise ManifestError(f"{path} is damaged: it lists {outside[0]}, which is not a file's name")
    for name in needs:
        require_file(directory, name)
    for name, expected in files.items() if unchanged else ():
        if (directory / name).is_file():
            check_hash(directory / name, expected)
    return manifest


def openvino_graph(manifest: Mapping[str, Any]) -> str | None:
    """Return the file of an export that OpenVINO runs; None if the export has none."""
    if OPENVINO_GRAPH in manifest["files"]:
        return OPENVINO_GRAPH
    return GRAPH if manifest["spec"]["precision"] in ("fp32", "int8") else None


def require_file(directory: Path, name: str) -> None:
    """Raise `ManifestError` unless an export has this file."""
    if not (directory / name).is_file():
        raise ManifestError(
            f"{directory} lacks {name}", remedy="copy it there too, or export it again"
        )


def check_hash(file: Path, expected: str) -> None:
    """Raise `ManifestError` unless a file has this SHA-256."""
    if (got := sha256(file)) != expected:
        again = "build it again with tsformer build" if file.name == ENGINE else "export it again"
        raise ManifestError(
            f"{file} was changed since it was exported",
            got=f"sha256 {got[:12]}",
            expected=expected[:12],
            remedy=again,
        )


def sha256(path: Path) -> str:
    """Hash a file without reading it into memory as a whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_checkpoint(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and hashes of a directory's files."""
    if path.is_file():
        return sha256(path)
    return hash_files(path, path.iterdir())


def hash_files(folder: Path, paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the names in a folder, and the hashes, of those paths that are files.

    Bytes of a name that are no text are escaped.
    """
    files = sorted(path for path in paths if path.is_file())
    listing = "".join(f"{file.relative_to(folder)} {sha256(file)}\n" for file in files)
    return hashlib.sha256(listing.encode(errors="backslashreplace")).hexdigest()
