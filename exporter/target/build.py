"""An exported directory -> its engine again, for the GPU at hand. Needs neither torch nor onnx.

The engine and the manifest are two files, and no system call replaces both. The new engine comes
first. If the machine stops between the two, the engine does not have the hash in the manifest:
every command refuses it, and the next build replaces it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from exporter.errors import EngineError, ManifestError, OutputError, UsageError
from exporter.files.lock import Lock
from exporter.files.manifest import (
    ENGINE,
    ENGINE_GRAPH,
    GRAPH,
    check_hash,
    manifest_bytes,
    read_manifest,
    require_file,
    sha256,
)
from exporter.files.place import write_whole
from exporter.files.staging import MANIFEST
from exporter.machine.environment import describe
from exporter.run.stages import OnProgress, no_progress
from exporter.runners.cuda import look_for_gpu
from exporter.spec import ExportSpec
from exporter.to_engine.build import EngineInfo, build_engine
from exporter.to_engine.flavours import FLAVOURS, choose_flavour
from exporter.to_engine.progress import BuildProgress

_HIDDEN = ".build."


@dataclass(frozen=True)
class Built:
    """An engine that was built: its entry in the manifest, and the graph that it was built from."""

    engine: dict[str, Any]
    graph: str
    choice: str


def build(
    directory: str | Path,
    *,
    engine: str = "auto",
    targets: tuple[str, ...] = (),
    force: bool = False,
    on_progress: OnProgress = no_progress,
) -> Built:
    """Build the engine of an export again, and put it and its facts in place.

    The graph is `model.tensorrt.onnx`, or `model.onnx` where an older export has no other.

    Args:
        directory: A directory that `export` made.
        engine: `auto`, `rtx` or `tensorrt`.
        targets: GPU architectures such as `sm86`, for TensorRT-RTX.
        force: Replace an engine that is whole.
        on_progress: Called while it builds.

    Raises:
        NoExportError: if the directory is not an export.
        ManifestError: if the graph is missing or was changed, a pipe is among the files, or weights
            are a link out of the directory.
        UsageError: if the options do not go together.
        OutputError: if a whole engine is there, or the directory cannot be written.
        EngineError: if no TensorRT works here, or the build fails.
    """
    directory = Path(directory)
    read_manifest(directory, unchanged=False)  # it is an export: else nothing is written there
    with _alone(directory) as place:
        manifest = read_manifest(directory, unchanged=False)  # another build may have ended
        spec = _spec(manifest, engine, targets)
        graph = _graph(directory, manifest)
        if not force and _is_whole(directory, manifest):
            raise OutputError(
                f"{directory / ENGINE} is there already", remedy="replace it with --force"
            )
        choice = choose_flavour(engine, gpu=look_for_gpu().gpu is not None)
        if choice.flavour is None:
            raise EngineError(f"no engine can be built here: {choice.reason}")

        def report(progress: BuildProgress) -> None:
            on_progress("engine", progress.fraction, progress.phase)

        info = build_engine(
            graph,
            place / ENGINE,
            flavour=choice.flavour,
            profile=spec.dynamic_batch,
            targets=spec.engine_targets if FLAVOURS[choice.flavour].takes_targets else (),
            checked=True,  # by its hash: the export checked it
            on_progress=report,
        )
        facts = _facts(info, graph.name)
        _put_in_place(directory, place / ENGINE, manifest, facts)
    return Built(facts, graph.name, choice.reason)


def _spec(manifest: Mapping[str, Any], engine: str, targets: tuple[str, ...]) -> ExportSpec:
    if engine == "none":
        raise UsageError("--engine none builds nothing", remedy="choose auto, rtx or tensorrt")
    try:
        spec = ExportSpec.from_dict(manifest["spec"])
    except (UsageError, TypeError, ValueError) as error:
        raise ManifestError(
            f"the manifest is damaged: {error}", remedy="export it again"
        ) from error
    return replace(spec, engine=engine, targets=targets, runtimes=())  # whatever --for named


def _graph(directory: Path, manifest: Mapping[str, Any]) -> Path:
    name = ENGINE_GRAPH if ENGINE_GRAPH in manifest["files"] else GRAPH
    require_file(directory, name)
    check_hash(directory / name, manifest["files"][name]["sha256"])
    _check_beside(directory / name)
    return directory / name


def _check_beside(graph: Path) -> None:
    """Refuse pipes beside a graph, and links to weights elsewhere: TensorRT follows every link.

    Other links do not hold weights of this graph: in the cache of the Hugging Face hub every file
    is a link.

    Raises:
        ManifestError: if there is one.
    """
    inside, content = graph.parent.resolve(), b""
    for path in graph.parent.rglob("*"):
        if path.exists() and not path.is_dir() and not path.is_file():
            # TensorRT waits without end where a graph has its weights in a pipe.
            raise ManifestError(f"{path} is a pipe or a device, not a file", remedy="remove it")
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            content = content or graph.read_bytes()  # the files of its weights are in it by name
            if os.fsencode(f"{path.name}/" if path.is_dir() else path.name) in content:
                what = f"{graph.name} has weights in {path}, a link that leaves the export"
                raise ManifestError(what, remedy="put the file there in its place")


def _is_whole(directory: Path, manifest: Mapping[str, Any]) -> bool:
    file, entry = directory / ENGINE, manifest["files"].get(ENGINE)
    return entry is not None and file.is_file() and sha256(file) == entry["sha256"]


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[Path]:
    """Make a hidden place to build in, while no other build works on the same export."""
    try:
        with Lock(directory) as lock:
            try:
                lock.exclusive(wait=False)
            except OSError as error:
                raise OutputError(f"another build works on {directory}") from error
            for stale in directory.glob(f"{_HIDDEN}*"):  # of a build that was killed
                shutil.rmtree(stale, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=directory, prefix=_HIDDEN) as place:
                yield Path(place)
    except OSError as error:
        raise OutputError(f"cannot write {directory}: {error.strerror or error}") from error


def _facts(info: EngineInfo, graph: str) -> dict[str, Any]:
    here, facts = describe(), asdict(info)
    facts |= facts.pop("fusion") or {}
    return facts | {
        "flavour": FLAVOURS[info.flavour].module,
        "status": "built, not executed",
        "graph": graph,
        "built": {name: here[name] for name in ("date", "platform", "gpu")},
    }


def _put_in_place(
    directory: Path, engine: Path, manifest: dict[str, Any], facts: dict[str, Any]
) -> None:
    entry = {"bytes": facts["bytes"], "sha256": facts["sha256"]}
    files = dict(sorted({**manifest["files"], ENGINE: entry}.items()))
    content = manifest_bytes({**manifest, "engine": facts, "files": files})
    engine.replace(directory / ENGINE)
    write_whole(directory / MANIFEST, content)
