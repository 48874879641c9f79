"""Build `model.engine` from `model.onnx`: one wrapper for `tensorrt` and `tensorrt_rtx`.

    choice = choose_flavour("auto", gpu=gpu_name() is not None)
    if choice.flavour:
        info = build_engine(onnx_path, engine_path, flavour=choice.flavour)

Only the worker process (`exporter.to_engine.worker`) loads TensorRT. This process never loads it.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import EngineError
from exporter.spec import BatchProfile
from exporter.to_engine.flavours import FLAVOURS, check_name
from exporter.to_engine.kernels import Fusion, Layer, find_fusion
from exporter.to_engine.process import OnProgress, Worker
from exporter.to_engine.progress import BuildProgress

if TYPE_CHECKING:  # it imports onnx, which only a build needs
    from exporter.graph.attention import GraphAttention

Shape = tuple[int | None, ...]  # None for a free batch


@dataclass(frozen=True)
class ShapeRange:
    """The range of shapes that an engine accepts for one input; it is tuned for `opt`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of an engine; `profile` is set only for an input with a free batch."""

    name: str
    shape: Shape
    dtype: str
    profile: ShapeRange | None = None


@dataclass(frozen=True)
class EngineInfo:
    """All facts about an engine, recorded at build time. Later, reading them needs a GPU.

    `targets` are the requested GPU architectures, as read back from the builder. Empty means the
    default of the flavour (`rtx`: Ampere and later; `tensorrt`: the GPU of this machine). `layers`
    is the number of layers of the parsed network, before fusion, and `fusion` what became of them;
    None if the builder does not tell. `peak_memory_mb` is the peak memory of the build process.
    """

    flavour: str
    version: str
    bytes: int
    sha256: str
    targets: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: int
    seconds: float
    peak_memory_mb: float | None
    warnings: tuple[str, ...]
    fusion: Fusion | None = None


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    *,
    flavour: str,
    profile: BatchProfile | None = None,
    targets: tuple[str, ...] = (),
    checked: bool = False,
    on_progress: OnProgress | None = None,
) -> EngineInfo:
    """Build an engine in a separate process. `engine_path` appears whole or not at all.

    Args and errors are those of `Building`. `on_progress` is called in this thread for every phase
    and step. An exception that it raises cancels the build, and so does Ctrl-C.
    """
    how = {"flavour": flavour, "profile": profile, "targets": targets, "checked": checked}
    with closing(Building(onnx_path, engine_path, **how)) as building:
        return building.finish(on_progress)


class Building:
    """An engine that a separate process builds; `close` cancels the build.

    Args:
        onnx_path: The graph. It is strongly typed: the engine computes in the types of the graph.
        engine_path: The file to write, in a directory that exists.
        flavour: A key of `FLAVOURS`.
        profile: The batch sizes of a graph with a dynamic batch.
        targets: GPU architectures such as `sm86`, if the flavour takes targets.
        checked: The graph is known to be valid; then no onnx is needed.

    Raises:
        EngineError: if the graph is not valid ONNX.
    """

    def __init__(
        self,
        onnx_path: Path,
        engine_path: Path,
        *,
        flavour: str,
        profile: BatchProfile | None = None,
        targets: tuple[str, ...] = (),
        checked: bool = False,
    ) -> None:
        _check_arguments(engine_path, flavour, targets)
        if not checked:
            _check_graph(onnx_path)
        self._onnx, self._engine, self._flavour = onnx_path, engine_path, flavour
        self._partial = engine_path.with_name(f".{engine_path.name}.{os.getpid()}.partial")
        request = {
            "module": FLAVOURS[flavour].module,
            "onnx": str(onnx_path),
            "engine": str(self._partial),
            "profile": [profile.min, profile.opt, profile.max] if profile else None,
            "targets": list(dict.fromkeys(targets)),
        }
        self._worker = Worker(request)

    def finish(self, on_progress: OnProgress | None = None) -> EngineInfo:
        """Wait for the engine.

        Raises:
            EngineError: if TensorRT refuses the graph, or the process dies.
        """
        report = on_progress or (lambda _: None)
        report(BuildProgress("Reading ONNX", 0, 1, 0.0))  # TensorRT is silent while it parses
        answer = self._worker.answer(report)
        steps = [Layer(**step) for step in answer.pop("steps", [])]
        answer["fusion"] = find_fusion(steps, _attentions(self._onnx)) if steps else None
        info = _engine_info(answer, self._flavour, self._partial)
        self._partial.replace(self._engine)
        return info

    def close(self) -> None:
        """End the process, and remove what it wrote of an engine that is not whole."""
        self._worker.close()
        self._partial.unlink(missing_ok=True)


def _check_arguments(engine_path: Path, flavour: str, targets: tuple[str, ...]) -> None:
    check_name("engine flavour", flavour, FLAVOURS)
    if targets and not FLAVOURS[flavour].takes_targets:
        raise EngineError(
            f"{flavour} builds for the GPU of this machine and takes no targets",
            got=",".join(targets),
            remedy="omit --target or choose --engine rtx",
        )
    folder = engine_path.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise EngineError(f"cannot write {engine_path.name} to {folder}")


def _check_graph(onnx_path: Path) -> None:
    import onnx  # imported here, because the import is slow and only a build needs it

    try:
        # TensorRT reads garbage as an empty graph, without an error.
        onnx.checker.check_model(str(onnx_path))
    except Exception as error:  # OSError, protobuf's DecodeError, or ValidationError
        raise EngineError(f"{onnx_path} is not a valid ONNX graph", got=error) from error


def _attentions(graph: Path) -> tuple[GraphAttention, ...] | None:
    """Find the attentions of a graph; None without onnx, which only this line of facts needs."""
    try:
        from exporter.graph.attention import find_attentions
        from exporter.graph.file import read_graph
    except ModuleNotFoundError:
        return None
    return find_attentions(read_graph(graph))


def _engine_info(answer: dict[str, Any], flavour: str, engine: Path) -> EngineInfo:
    with engine.open("rb") as file:
        magic = file.read(len(FLAVOURS[flavour].magic))
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = engine.stat().st_size
    if size == 0 or magic != FLAVOURS[flavour].magic:
        raise EngineError(
            f"{flavour} wrote no engine",
            got=f"{size} bytes that begin with {magic!r}",
            expected=FLAVOURS[flavour].magic,
        )
    tuples = {name: tuple(answer.pop(name)) for name in ("targets", "warnings")}
    inputs = tuple(map(_tensor_info, answer.pop("inputs")))
    outputs = tuple(map(_tensor_info, answer.pop("outputs")))
    return EngineInfo(
        flavour, bytes=size, sha256=sha256, inputs=inputs, outputs=outputs, **tuples, **answer
    )


def _tensor_info(tensor: dict[str, Any]) -> TensorInfo:
    shapes = tensor.get("profile")
    profile = ShapeRange(*map(tuple, shapes)) if shapes else None
    return TensorInfo(tensor["name"], tuple(tensor["shape"]), tensor["dtype"], profile)
