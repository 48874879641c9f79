"""Flatten the content of a checkpoint file: every tensor by the path to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from model.weights.harmless import plain

# Modules that wrappers put between the names of a model: torch.compile, FSDP, activation
# checkpointing, Lightning's strategies, and the layers that PEFT replaces.
_WRAPPING = frozenset(
    {
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_fpw_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
        "base_layer",
    }
)
_LONGEST_LIST = 10_000
_MOST_CHANNELS = 4  # a model may hold the mean and deviation of its pixels as buffers


@dataclass(frozen=True)
class Flat:
    """The content of a file, by dotted paths.

    Args:
        tensors: All tensors, in the order of the file. Names of wrapping modules are left out.
        settings: Numbers, texts, and lists of them.
        signatures: Path of a state dict of ours -> its configuration, see `VideoClassifier`.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    signatures: dict[str, Any] = field(default_factory=dict)


def flatten(content: object) -> Flat:
    """Walk through mappings, lists and stand-ins; a container that is met twice counts once."""
    flat = Flat()
    kept: dict[int, object] = {}  # keeps the containers alive, so that their ids stay unique
    waiting: list[tuple[str, object]] = [("", content)]
    while waiting:
        path, found = waiting.pop()
        value = plain(found)
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
            named = plain(value[1])  # PaddlePaddle stores a tensor with its name
            value = named if isinstance(named, Tensor) else value
        if isinstance(value, Tensor):
            flat.tensors[_free_name(path, flat.tensors)] = value
            if path.endswith(("mean", "std")) and value.numel() <= _MOST_CHANNELS:
                flat.settings[path] = [round(each, 6) for each in value.flatten().tolist()]
        elif isinstance(value, (str, int, float)):  # bool is an int
            flat.settings[path] = value
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in kept:
            kept[id(value)] = value
            _keep_signatures(flat, path, value)
            if _is_list_of_leaves(value):
                flat.settings[path] = [plain(entry) for entry in value]
            else:
                waiting += reversed(list(_children(path, value)))
    return flat


def without_wrapping(path: str) -> str:
    """Remove the names of wrapping modules from a path."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPING)


def _children(
    path: str, value: Mapping[Any, object] | Sequence[object]
) -> Iterator[tuple[str, object]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for name, entry in items:
        yield _join(path, name), entry


def _join(path: str, name: object) -> str:
    return ".".join(part for part in (path, str(name)) if part)


def _free_name(path: str, taken: Mapping[str, object]) -> str:
    name = without_wrapping(path)
    return path if name in taken else name


def _keep_signatures(flat: Flat, path: str, value: object) -> None:
    metadata = getattr(value, "_metadata", None)
    for name, entry in metadata.items() if isinstance(metadata, Mapping) else ():
        if isinstance(entry, Mapping) and "config" in entry:
            flat.signatures[without_wrapping(_join(path, name))] = dict(entry)


def _is_list_of_leaves(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and 0 < len(value) <= _LONGEST_LIST
        and all(isinstance(plain(entry), (str, int, float)) for entry in value)
    )
