"""Read files of weights, and never run code from them.

PyTorch files are opened only with `weights_only=True`; the safetensors library opens its files.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

METADATA_KEY = "tsformer"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module")
# DistributedDataParallel, torch.compile and Lightning add these prefixes.
_PREFIXES = ("module.", "_orig_mod.", "model.")


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not match the requested model."""


@dataclass(frozen=True)
class WeightsFile:
    """Tensors by name, and the metadata that describes them.

    `description` is the metadata of our own files. `sidecars` maps the names of the JSON files
    in the directory of the weights to their content. Both are empty for a bare state dict.
    """

    state: Mapping[str, Tensor]
    description: Mapping[str, Any] = field(default_factory=dict)
    sidecars: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_weights(path: Path) -> WeightsFile:
    """Read a `.pth`, `.pt` or `.safetensors` file; its content, not its name, decides the format.

    Raises:
        CheckpointError: if the file is missing or damaged, holds no weights, or can only be read by
            running code from it.
    """
    _check_is_file(path)
    with path.open("rb") as file:
        head = file.read(9)
    weights = _read_safetensors(path) if head[8:] == b"{" else _read_torch(path)
    _check_finite(path, weights.state)
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        CheckpointError: if the file cannot be read, is damaged, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def is_directory(path: Path) -> bool:
    """Return whether a path is a directory.

    Raises:
        CheckpointError: if the path cannot be examined.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _check_is_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise CheckpointError(
                f"{path} is a directory, expected a .pth, .pt or .safetensors file"
            )
        with path.open("rb") as file:
            if not file.read(1):
                raise CheckpointError(f"{path} is empty, expected weights")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except Exception as error:  # the library also raises errors of other classes than its own
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        description = json.loads(metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise CheckpointError(f"{path} has damaged {METADATA_KEY} metadata: {error}") from error
    return WeightsFile(_strip_prefixes(path, state), _check_description(path, description))


def _read_torch(path: Path) -> WeightsFile:
    try:
        # Pass an open file: given a path that ends in .safetensors, PyTorch would read that format.
        # Ignore PyTorch's warnings about pickles of other programs: an error must be one line.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise an error of any class
        raise CheckpointError(_explain_torch_failure(path, error)) from error
    state = _unwrap(path, content)
    return WeightsFile(_strip_prefixes(path, state), _read_signature(path, state))


def _read_signature(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Read the configuration from our own state dict, with or without the prefixes of wrappers."""
    metadata = getattr(state, "_metadata", None)
    for name, entry in metadata.items() if isinstance(metadata, Mapping) else ():
        wrappers_only = all(f"{part}." in _PREFIXES for part in str(name).split(".") if part)
        if wrappers_only and isinstance(entry, Mapping) and "config" in entry:
            return _check_description(path, dict(entry))
    return {}


def _check_description(path: Path, description: Any) -> dict[str, Any]:  # noqa: ANN401  # parsed
    if not isinstance(description, dict) or not isinstance(description.get("config", {}), dict):
        raise CheckpointError(
            f"{path} has damaged {METADATA_KEY} metadata: got {str(description)[:80]!r}, expected "
            "an object with a config"
        )
    return description


def _explain_torch_failure(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(2)
    # "PK" begins a zip archive; byte 128 and a protocol number from 0 to 8 begin a pickle.
    is_pickle = len(head) == 2 and head[0] == 128 and head[1] < 9
    may_be_pickle = head == b"PK" or is_pickle
    refused = ("Unsupported global", "Unsupported operand", "Unsupported class")
    if may_be_pickle and any(reason in str(error) for reason in refused):
        return (
            f"{path} holds Python objects, not only weights, and loading them could run code: "
            "nothing was run; save it again as torch.save(model.state_dict(), ...)"
        )
    reason = str(error).strip().partition("\n")[0][:120]
    return f"{path} is not a whole PyTorch file of weights: {type(error).__name__}: {reason}"


def _unwrap(path: Path, content: object) -> Mapping[str, Any]:
    while isinstance(content, Mapping):
        inner = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None and any(isinstance(value, Tensor) for value in content.values()):
            return content
        if inner is None:
            keys = ", ".join(map(str, list(content)[:5]))
            raise CheckpointError(
                f"{path} holds no weights: got keys {keys or '(none)'}, expected tensors by name "
                f"or one of {', '.join(_WRAPPERS)}"
            )
        content = content[inner]
    raise CheckpointError(
        f"{path} holds no weights: got {type(content).__name__}, expected tensors by name"
    )


def _strip_prefixes(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES * 2:  # twice, because a prefix can be inside another prefix
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if not tensors:
        raise CheckpointError(f"{path} holds no weights: it contains no tensors")
    return tensors


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.ndim == 0:
            raise CheckpointError(f"{path}: {name} has the wrong shape: got (), a single number")
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype}, expected unquantised floating-point weights"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} holds NaN or infinite weights in {name}")
