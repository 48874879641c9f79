"""Facts about an exported directory, a graph or an engine, which `tsformer inspect` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import GraphInputError, TsformerError
from exporter.files.machines import Machines, read_machines
from exporter.files.manifest import ENGINE, GRAPH, read_manifest, sha256
from exporter.files.staging import MANIFEST
from exporter.files.text import read_json
from exporter.inspection.engine import EngineFacts, inspect_engine, is_engine

if TYPE_CHECKING:
    from exporter.inspection.graph import GraphFacts


@dataclass(frozen=True)
class ExportFacts:
    """The manifest of an exported directory in short, and the state of each of its files.

    `rewrites` are those that fired, from its report; `None` if it has no report that can be read.
    `machines` is what other machines recorded about these files.
    """

    verdict: str
    spec: Mapping[str, Any]
    model: Mapping[str, Any]
    rewrites: tuple[Mapping[str, Any], ...] | None
    engine_status: str
    files: Mapping[str, str]
    machines: Machines


@dataclass(frozen=True)
class Inspection:
    """What was found at a path: an export with its graph and engine, or a graph or engine alone."""

    path: str
    export: ExportFacts | None
    graph: GraphFacts | None
    engine: EngineFacts | None


def inspect(path: Path) -> Inspection:
    """Collect the facts about an exported directory, a graph of any origin, or an engine.

    Raises:
        NoExportError: if a directory is not an export.
        ManifestError: if its manifest is damaged.
        GraphInputError: if a file cannot be read, or is not a graph.
    """
    if path.is_dir():
        manifest = read_manifest(path, unchanged=False)
        export = _export_facts(path, manifest)
        graph = _graph(path / GRAPH) if (path / GRAPH).is_file() else None
        engine = path / ENGINE
        facts = inspect_engine(engine, manifest["engine"]) if engine.is_file() else None
        return Inspection(str(path), export, graph, facts)
    if not path.is_file():
        raise GraphInputError(f"there is no file {path}")
    if is_engine(path):
        return Inspection(str(path), None, None, inspect_engine(path, _noted_beside(path)))
    return Inspection(str(path), None, _graph(path), None)


def _graph(path: Path) -> GraphFacts:
    # These import onnx, which an engine does not need.
    from exporter.graph.file import read_graph
    from exporter.inspection.graph import inspect_graph

    return inspect_graph(read_graph(path), path)


def _export_facts(directory: Path, manifest: Mapping[str, Any]) -> ExportFacts:
    states = {
        name: _state(directory / Path(name).name, entry["sha256"])
        for name, entry in manifest["files"].items()
    }
    return ExportFacts(
        verdict=str(manifest.get("verdict")),
        spec=manifest["spec"],
        model=manifest["model"],
        rewrites=_rewrites(directory),
        engine_status=str(manifest["engine"].get("status", "not built")),
        files=states,
        machines=read_machines(directory, manifest),
    )


def _state(file: Path, expected: str) -> str:
    if not file.is_file():
        return "missing"
    return "as exported" if sha256(file) == expected else "changed since it was exported"


def _rewrites(directory: Path) -> tuple[Mapping[str, Any], ...] | None:
    try:
        report = read_json(directory / "report.json")
        return tuple(report["graph"]["rewrites"])
    except (OSError, ValueError, KeyError, TypeError):  # the proof does not need the report
        return None


def _noted_beside(engine: Path) -> Mapping[str, Any]:
    """The entry of an engine in the manifest beside it; empty if there is none."""
    if not (engine.parent / MANIFEST).is_file():
        return {}
    try:
        manifest = read_manifest(engine.parent, unchanged=False)
    except TsformerError:  # damaged, or of another program: the engine is inspected alone
        return {}
    return manifest["engine"] if engine.name == ENGINE else {}
