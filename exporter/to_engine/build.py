"""`model.onnx` -> `model.engine`: one wrapper over `tensorrt` and `tensorrt_rtx`.

    choice = choose_flavour("auto", gpu=torch.cuda.is_available())
    if choice.flavour:
        info = build_engine(onnx_path, engine_path, flavour=choice.flavour)

The two packages share an API and differ in what they can do: see `FLAVOURS`. TensorRT itself is
loaded only in the worker process (`exporter.to_engine.worker`), never in this one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import EngineError
from exporter.spec import ENGINES, BatchProfile
from exporter.to_engine.process import OnProgress, ask_worker
from exporter.to_engine.progress import BuildProgress
from model.config import ConfigError, check_choice

Shape = tuple[int | None, ...]  # None where the batch is free


@dataclass(frozen=True)
class Flavour:
    """What one TensorRT package is called and can do."""

    module: str
    package: str  # on PyPI
    builds_without_gpu: bool
    takes_targets: bool
    magic: bytes  # how its engines begin; empty where that is not documented


FLAVOURS = {
    "tensorrt": Flavour("tensorrt", "tensorrt", False, False, b""),
    "rtx": Flavour("tensorrt_rtx", "tensorrt-rtx-cu13", True, True, b"vtrt"),
}
# A manifest names the flavour of its engine by its module.
FLAVOUR_OF_MODULE = {flavour.module: name for name, flavour in FLAVOURS.items()}


@dataclass(frozen=True)
class FlavourStatus:
    """Whether a flavour works here: its version, or the reason why not and what to do."""

    flavour: str
    version: str | None
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class FlavourChoice:
    """The flavour to build with and why; without a flavour, why no engine is built."""

    flavour: str | None
    reason: str


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that an engine accepts for one input, and the one it is tuned for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of an engine; `profile` only where its batch is free."""

    name: str
    shape: Shape
    dtype: str
    profile: ShapeRange | None = None


@dataclass(frozen=True)
class EngineInfo:
    """All there is to know about an engine, noted at build time: later it would need a GPU.

    `targets` are the GPU architectures asked for, as the builder has them; empty stands for its
    default (`rtx`: Ampere and later; `tensorrt`: the GPU present). `layers` counts those of the
    parsed network, before fusion. `peak_memory_mb` is that of the build process.
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


def available_flavours() -> dict[str, FlavourStatus]:
    """Try every flavour in a process of its own."""
    return {name: probe(name) for name in FLAVOURS}


def probe(name: str) -> FlavourStatus:
    """Try whether a flavour can be imported and can create a builder."""
    flavour = FLAVOURS[name]
    where = "" if flavour.builds_without_gpu else " on a machine with an NVIDIA GPU and driver"
    try:
        answer = ask_worker({"module": flavour.module}, lambda _: None)
    except EngineError as error:
        return FlavourStatus(name, None, str(error), f"pip install {flavour.package}{where}")
    return FlavourStatus(name, answer["version"])


def examine_header(engine: Path, flavour: str) -> tuple[str, ...]:
    """What TensorRT holds against an engine on this machine, by its header alone; needs no GPU.

    Returns:
        Names of `EngineInvalidityDiagnostics` in lower case; `malformed_engine` is about the file,
        the others about this machine.

    Raises:
        EngineError: if that flavour is not here, or cannot tell.
    """
    request = {"module": FLAVOURS[flavour].module, "examine": str(engine)}
    return tuple(ask_worker(request, lambda _: None)["objections"])


def choose_flavour(engine: str, *, gpu: bool) -> FlavourChoice:
    """Choose what to build with.

    Args:
        engine: `auto` takes `tensorrt` where it works and there is a GPU, else `rtx` where that
            works, else none; `none` builds nothing; a flavour's name insists on it.
        gpu: Whether this machine has a CUDA device.

    Raises:
        EngineError: if the flavour insisted on does not work here.
    """
    _check_name("engine", engine, ENGINES)
    if engine == "none":
        return FlavourChoice(None, "--engine none")
    passed_over: list[FlavourStatus] = []
    for name in FLAVOURS if engine == "auto" else (engine,):
        status = _probe_for(name, gpu=gpu)
        if status.version is not None:
            reasons = [f"{name} {status.version}", *(other.reason for other in passed_over)]
            return FlavourChoice(name, "; ".join(reasons))
        if engine != "auto":
            raise EngineError(status.reason, remedy=status.remedy)
        passed_over.append(status)
    reasons = (f"{status.reason} ({status.remedy})" for status in passed_over)
    return FlavourChoice(None, "; ".join(reasons))


def _probe_for(name: str, *, gpu: bool) -> FlavourStatus:
    if gpu or FLAVOURS[name].builds_without_gpu:
        return probe(name)
    reason = f"{name} builds only for a GPU that is present, and none is"
    return FlavourStatus(name, None, reason, "choose --engine rtx")


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    *,
    flavour: str,
    profile: BatchProfile | None = None,
    targets: tuple[str, ...] = (),
    on_progress: OnProgress | None = None,
) -> EngineInfo:
    """Build an engine in a process of its own; it appears at `engine_path` whole or not at all.

    Args:
        onnx_path: The graph; strongly typed, so its own types are those of the engine.
        engine_path: Where to write, in a directory that exists.
        flavour: A key of `FLAVOURS`.
        profile: The batch sizes of a graph with a dynamic batch.
        targets: GPU architectures as `sm86`, where the flavour takes them.
        on_progress: Called in this thread for every phase and step. What it raises, and Ctrl-C,
            cancels the build.

    Raises:
        EngineError: if the graph is not valid ONNX, TensorRT refuses it, or its process dies.
    """
    report = on_progress or (lambda _: None)
    report(BuildProgress("Reading ONNX", 0, 1, 0.0))  # TensorRT reports nothing while it parses
    _check_arguments(onnx_path, engine_path, flavour, targets)
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
        info = _engine_info(answer, flavour, partial)
        partial.replace(engine_path)
    finally:
        partial.unlink(missing_ok=True)
    return info


def _check_arguments(
    onnx_path: Path, engine_path: Path, flavour: str, targets: tuple[str, ...]
) -> None:
    import onnx  # only who builds an engine waits for it

    _check_name("engine flavour", flavour, FLAVOURS)
    if targets and not FLAVOURS[flavour].takes_targets:
        raise EngineError(
            f"{flavour} builds for the GPU that is present and takes no targets",
            got=",".join(targets),
            remedy="leave --target away or choose --engine rtx",
        )
    folder = engine_path.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise EngineError(f"cannot write {engine_path.name} to {folder}")
    try:
        onnx.checker.check_model(str(onnx_path))  # TensorRT takes garbage for an empty graph
    except Exception as error:  # OSError, protobuf's DecodeError, ValidationError
        raise EngineError(f"{onnx_path} is not a valid ONNX graph", got=error) from error


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
