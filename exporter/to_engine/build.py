"""Build `model.engine` from `model.onnx`: one wrapper for `tensorrt` and `tensorrt_rtx`.

    choice = choose_flavour("auto", gpu=gpu_name() is not None)
    if choice.flavour:
        info = build_engine(onnx_path, engine_path, flavour=choice.flavour)

The two packages have the same API but different abilities: see `FLAVOURS`. Only the worker process
(`exporter.to_engine.worker`) loads TensorRT. This process never loads it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import EngineError
from exporter.spec import ENGINES, BatchProfile
from exporter.to_engine.kernels import Fusion, Layer, find_fusion
from exporter.to_engine.process import OnProgress, ask_worker
from exporter.to_engine.progress import BuildProgress
from model.config import ConfigError, check_choice

if TYPE_CHECKING:  # it imports onnx, which only a build needs
    from exporter.graph.attention import GraphAttention

Shape = tuple[int | None, ...]  # None for a free batch


@dataclass(frozen=True)
class Flavour:
    """Names and abilities of one TensorRT package."""

    module: str
    package: str  # the name on PyPI
    builds_without_gpu: bool
    takes_targets: bool
    magic: bytes  # the first bytes of its engines; empty where they are not documented


FLAVOURS = {
    "tensorrt": Flavour("tensorrt", "tensorrt", False, False, b""),
    "rtx": Flavour("tensorrt_rtx", "tensorrt-rtx-cu13", True, True, b"vtrt"),
}
# A manifest stores the flavour of its engine as the name of the Python module.
FLAVOUR_OF_MODULE = {flavour.module: name for name, flavour in FLAVOURS.items()}


@dataclass(frozen=True)
class FlavourStatus:
    """Whether a flavour works here: its version; or why it does not work, and what to do."""

    flavour: str
    version: str | None
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class FlavourChoice:
    """The flavour to build with, and the reason. None as flavour means that no engine is built."""

    flavour: str | None
    reason: str


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


def available_flavours() -> dict[str, FlavourStatus]:
    """Try each flavour in a separate process."""
    return {name: probe(name) for name in FLAVOURS}


def probe(name: str) -> FlavourStatus:
    """Check whether a flavour can be imported and can create a builder."""
    flavour = FLAVOURS[name]
    where = "" if flavour.builds_without_gpu else " on a machine with an NVIDIA GPU and driver"
    try:
        answer = ask_worker({"module": flavour.module}, lambda _: None)
    except EngineError as error:
        return FlavourStatus(name, None, str(error), f"pip install {flavour.package}{where}")
    return FlavourStatus(name, answer["version"])


def examine_header(engine: Path, flavour: str) -> tuple[str, ...]:
    """Ask TensorRT why an engine cannot run on this machine. Reads the header, needs no GPU.

    Returns:
        Names of `EngineInvalidityDiagnostics` in lower case. `malformed_engine` concerns the file,
        the others concern this machine.

    Raises:
        EngineError: if the flavour is not installed, or cannot check an engine.
    """
    request = {"module": FLAVOURS[flavour].module, "examine": str(engine)}
    return tuple(ask_worker(request, lambda _: None)["objections"])


def choose_flavour(engine: str, *, gpu: bool) -> FlavourChoice:
    """Choose the flavour to build with.

    Args:
        engine: `auto` chooses `tensorrt` if it works and there is a GPU, else `rtx` if it works,
            else no flavour. `none` chooses no flavour. The name of a flavour requires that flavour.
        gpu: Whether this machine has a CUDA device.

    Raises:
        EngineError: if the required flavour does not work here.
    """
    _check_name("engine", engine, ENGINES)
    if engine == "none":
        return FlavourChoice(None, "--engine none")
    rejected: list[FlavourStatus] = []
    for name in FLAVOURS if engine == "auto" else (engine,):
        status = _probe_for(name, gpu=gpu)
        if status.version is not None:
            reasons = [f"{name} {status.version}", *(other.reason for other in rejected)]
            return FlavourChoice(name, "; ".join(reasons))
        if engine != "auto":
            raise EngineError(status.reason, remedy=status.remedy)
        rejected.append(status)
    reasons = (f"{status.reason} ({status.remedy})" for status in rejected)
    return FlavourChoice(None, "; ".join(reasons))


def _probe_for(name: str, *, gpu: bool) -> FlavourStatus:
    if gpu or FLAVOURS[name].builds_without_gpu:
        return probe(name)
    reason = f"{name} builds only for a GPU of this machine, and it has none"
    return FlavourStatus(name, None, reason, "choose --engine rtx")


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

    Args:
        onnx_path: The graph. It is strongly typed: the engine computes in the types of the graph.
        engine_path: The file to write, in a directory that exists.
        flavour: A key of `FLAVOURS`.
        profile: The batch sizes of a graph with a dynamic batch.
        targets: GPU architectures such as `sm86`, if the flavour takes targets.
        checked: The graph is known to be valid; then no onnx is needed.
        on_progress: Called in this thread for every phase and step. An exception that it raises
            cancels the build, and so does Ctrl-C.

    Raises:
        EngineError: if the graph is not valid ONNX, TensorRT refuses it, or the process dies.
    """
    report = on_progress or (lambda _: None)
    report(BuildProgress("Reading ONNX", 0, 1, 0.0))  # TensorRT reports no progress while it parses
    _check_arguments(engine_path, flavour, targets)
    if not checked:
        _check_graph(onnx_path)
    partial = engine_path.with_name(f".{engine_path.name}.{os.getpid()}.partial")
    request = {
        "module": FLAVOURS[flavour].module,
        "onnx": str(onnx_path),
        "engine": str(partial),
        "profile": [profile.min, profile.opt, profile.max] if profile else None,
        "targets": list(dict.fromkeys(targets)),
    }
    try:
        answer = ask_worker(request, report)
        steps = [Layer(**step) for step in answer.pop("steps", [])]
        answer["fusion"] = find_fusion(steps, _attentions(onnx_path)) if steps else None
        info = _engine_info(answer, flavour, partial)
        partial.replace(engine_path)
    finally:
        partial.unlink(missing_ok=True)
    return info


def _check_arguments(engine_path: Path, flavour: str, targets: tuple[str, ...]) -> None:
    _check_name("engine flavour", flavour, FLAVOURS)
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
        import onnx
    except ModuleNotFoundError:
        return None
    from exporter.graph.attention import find_attentions
    from exporter.graph.view import GraphView

    return find_attentions(GraphView(onnx.load(graph)))


def _check_name(what: str, name: str, options: Iterable[str]) -> None:
    try:
        check_choice(what, name, options)
    except ConfigError as error:
        raise EngineError(str(error)) from error


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
