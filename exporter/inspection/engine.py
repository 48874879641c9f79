"""Facts about an engine without a GPU: its header, and what the build wrote beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from exporter.errors import EngineError, GraphInputError
from exporter.files.manifest import sha256
from exporter.to_engine.flavours import FLAVOUR_OF_MODULE, FLAVOURS, examine_header

SUFFIXES = {".engine", ".plan", ".trt"}
_MALFORMED = "malformed_engine"

Header = Literal["well-formed", "malformed", "not checked"]
Content = Literal["as built", "changed since it was built", "nothing to compare with"]


@dataclass(frozen=True)
class EngineFacts:
    """One engine file.

    `header` is the verdict of TensorRT. `objections` are its other complaints on this machine, or
    the reason why it was not asked. TensorRT reads little more than the first bytes; other damage
    shows in `content` alone, which compares the file with the checksum in a manifest. `built` is
    the entry in that manifest. Without a manifest, only a GPU that the engine was built for can
    tell what is in it.
    """

    file: str
    bytes: int
    sha256: str
    flavour: str | None
    header: Header
    objections: tuple[str, ...]
    content: Content
    built: Mapping[str, Any]


def is_engine(path: Path) -> bool:
    """Whether a file is an engine, by its suffix or by its first bytes."""
    return path.suffix.lower() in SUFFIXES or _flavour(path) is not None


def inspect_engine(path: Path, built: Mapping[str, Any]) -> EngineFacts:
    """Collect the facts about an engine; `built` is its entry in a manifest, empty if none.

    Raises:
        GraphInputError: if the file cannot be read, or is empty.
    """
    try:
        size, checksum = path.stat().st_size, sha256(path)
    except OSError as error:
        raise GraphInputError(f"cannot read {path}: {error.strerror}") from error
    if not size:
        raise GraphInputError(f"{path} is empty")
    flavour = _flavour(path) or FLAVOUR_OF_MODULE.get(str(built.get("flavour")))
    header, objections = _ask(path, flavour)
    same: Content = "as built" if checksum == built.get("sha256") else "changed since it was built"
    return EngineFacts(
        file=path.name,
        bytes=size,
        sha256=checksum,
        flavour=FLAVOURS[flavour].module if flavour else None,
        header=header,
        objections=objections,
        content=same if built.get("sha256") else "nothing to compare with",
        built=built,
    )


def _flavour(path: Path) -> str | None:
    """The flavour of TensorRT whose mark a file begins with."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:  # `inspect_engine` reports it
        return None
    marks = ((name, flavour.magic) for name, flavour in FLAVOURS.items() if flavour.magic)
    return next((name for name, mark in marks if start.startswith(mark)), None)


def _ask(path: Path, flavour: str | None) -> tuple[Header, tuple[str, ...]]:
    if flavour is None:
        marked = ", ".join(f.module for f in FLAVOURS.values() if f.magic)
        return "not checked", (f"it does not begin as an engine of {marked} does",)
    try:
        objections = examine_header(path, flavour)
    except EngineError as error:
        return "not checked", (str(error),)
    others = tuple(entry.replace("_", " ") for entry in objections if entry != _MALFORMED)
    return "malformed" if _MALFORMED in objections else "well-formed", others
