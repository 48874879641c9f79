"""The two TensorRT packages, `tensorrt` and `tensorrt_rtx`: what each can do, and which works here.

They have the same API but different abilities: see `FLAVOURS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import EngineError
from exporter.spec import ENGINES
from exporter.to_engine.process import ask_worker
from model.config import ConfigError, check_choice


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
    check_name("engine", engine, ENGINES)
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


def check_name(what: str, name: str, options: Iterable[str]) -> None:
    """Raise `EngineError` for a name that is not among the options."""
    try:
        check_choice(what, name, options)
    except ConfigError as error:
        raise EngineError(str(error)) from error
