"""Read files of weights, and never run code from them.

PyTorch files are opened only with `weights_only=True`, and `model.weights.harmless` stands in for
the harmless objects beside the weights. Other pickles are read with the same allow list. The
safetensors library opens its files.
"""

from __future__ import annotations

import json
import re
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from model.config import ConfigError
from model.limits import file_fault, tensor_fault
from model.weights.flatten import flatten
from model.weights.harmless import GLOBALS, PlainUnpickler
from model.words import listed

METADATA_KEY = "tsformer"
# Converts what `weights_only` refuses, in the place where the classes of the file can be imported.
_CONVERT_OBJECTS = (
    "import torch; k = lambda v: "
    "v if torch.is_tensor(v) or type(v) in (int, float, str) else "
    "{{n: k(x) for n, x in v.items()}} if isinstance(v, dict) else "
    "[k(x) for x in v] if type(v) in (list, tuple) else "
    'k(v.state_dict()) if hasattr(type(v), "state_dict") else None; '
    'torch.save(k({load}), "weights.pth")'
)
_LOAD_TORCH = 'torch.load({path}, "cpu", weights_only=False)'
_LOAD_PICKLE = '__import__("pickle").load(open({path}, "rb"))'
_CONVERT_TORCHSCRIPT = (
    'import torch; torch.save(torch.jit.load({path}, "cpu").state_dict(), "weights.pth")'
)
_TO_TENSORS = "save its arrays by name as tensors, with torch.save, and give that file"
_COMPRESSED = "compressed: unpack it, and give the file of weights in it"
# First bytes -> a kind of file that users take for one of weights.
_OTHER_KINDS = {
    b"\x1f\x8b": _COMPRESSED,  # gzip
    b"BZh": _COMPRESSED,
    b"\xfd7zXZ": _COMPRESSED,
    b"\x28\xb5\x2f\xfd": _COMPRESSED,  # zstd
    b"7z\xbc\xaf": _COMPRESSED,
    b"version h": "a pointer of Git LFS, not the weights: run git lfs pull in its directory",
    b'{\n  "': "JSON, not weights: give its directory, or the file of weights",
    b"<": "a web page, not weights: download the file itself",
    b"\x93NUMPY": f"an array of NumPy: {_TO_TENSORS}",
    b"\x89HDF": f"an HDF5 file, as Keras writes it: {_TO_TENSORS}",
}
_REFUSED = re.compile(
    r"(?:[Uu]nsupported (?:global: (?:GLOBAL )?|GLOBAL |operand |class )|unrecognized function )"
    r"(\S{0,80})"
)


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not match the requested model."""


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of a file by the path to them, and what else the file tells.

    Args:
        state: The tensors; after `model.weights.find`, those of one model by their published names.
        description: The metadata of our own files.
        sidecars: The JSON files in the directory of the weights, by name.
        settings: Numbers, texts and lists of them beside the weights, by path.
        signatures: Path of a state dict of ours -> its configuration.
        notes: Remarks for the report about what was read.
    """

    state: Mapping[str, Tensor]
    description: Mapping[str, Any] = field(default_factory=dict)
    sidecars: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    signatures: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_weights(path: Path) -> WeightsFile:
    """Read a file of weights; its content, not its name, decides the format.

    Raises:
        CheckpointError: if the file is missing or damaged, holds no weights, or can only be read by
            running code from it.
        ConfigError: if the metadata of our own file is damaged.
    """
    _check_is_file(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return _read_safetensors(path)
    try:
        flat = flatten(_read_torch(path, head))
    except CheckpointError:
        raise
    except Exception as error:  # an array whose parts do not fit together
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    flat.tensors.pop("", None)  # a tensor without a name
    if fault := tensor_fault(flat.tensors, path.stat().st_size):
        raise CheckpointError(f"{path} holds no usable weights: {fault}")
    if not flat.tensors:
        beside = f" beside {listed(flat.settings, 5)}" if flat.settings else ""
        raise CheckpointError(
            f"{path} holds no weights: it contains no tensors{beside}; expected tensors by name"
        )
    return WeightsFile(flat.tensors, settings=flat.settings, signatures=flat.signatures)


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
        if fault := file_fault(path):
            raise CheckpointError(f"cannot read {path}: {fault}")
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
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has damaged {METADATA_KEY} metadata: {error}") from error
    if not state:
        raise CheckpointError(f"{path} holds no weights: it contains no tensors")
    return WeightsFile(flatten(state).tensors, check_description(description))


def check_description(description: Any) -> dict[str, Any]:  # noqa: ANN401  # parsed
    """Return the metadata of our own file, which must be an object with a config.

    Raises:
        ConfigError: if it is not.
    """
    if not isinstance(description, dict) or not isinstance(description.get("config", {}), dict):
        raise ConfigError(
            f"has damaged {METADATA_KEY} metadata: got {str(description)[:80]!r}, expected "
            "an object with a config"
        )
    return description


def _read_torch(path: Path, head: bytes) -> object:
    try:
        # Pass an open file: given a path that ends in .safetensors, PyTorch would read that format.
        # Ignore PyTorch's warnings about pickles of other programs: an error must be one line.
        with (
            path.open("rb") as file,
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals(list(GLOBALS)),
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise an error of any class
        return _read_pickle(path, head, error)


def _is_pickle(head: bytes) -> bool:
    """Byte 128 and a protocol number from 0 to 8 begin a pickle."""
    return len(head) > 1 and head[0] == 128 and head[1] < 9


def _read_pickle(path: Path, head: bytes, error: Exception) -> Mapping[Any, Any]:
    """Read a pickle that is no PyTorch file; `error` says why PyTorch did not read it."""
    reason = error
    if _is_pickle(head):
        try:
            with path.open("rb") as file:
                content = PlainUnpickler(file).load()
            if isinstance(content, Mapping):
                return content
        except Exception as refused:  # as above
            reason = refused
    raise CheckpointError(_explain_torch_failure(path, head, reason)) from error


def _explain_torch_failure(path: Path, head: bytes, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        command = _command(_CONVERT_TORCHSCRIPT, path)
        return f"{path} is a TorchScript program, not a file of weights; convert it: {command}"
    if kind := _other_kind(path, head):
        return f"{path} is {kind}"
    may_be_pickle = head[:2] == b"PK" or _is_pickle(head)
    refused = _REFUSED.search(text)
    if may_be_pickle and refused:
        own = "GLOBAL" not in refused[0] and "global" in refused[0]  # no PyTorch file
        module, _, name = refused[1].rpartition(".")
        code, where = _CONVERT_OBJECTS, "where its classes can be imported"
        if module == "__main__":
            code = f"from SCRIPT import {name}; {code}"
            where += ", SCRIPT being the program that defines them"
        command = _command(code, path, load=_LOAD_PICKLE if own else _LOAD_TORCH)
        return (
            f"{path} holds Python objects ({refused[1]}), and loading them could run code: nothing "
            f"was run; if you trust it, convert it to a state_dict {where}: {command}"
        )
    reason = "it begins as one, but the rest is damaged or missing"
    return (
        f"{path} is not a whole PyTorch file of weights: "
        f"{reason if may_be_pickle else 'it does not begin as one'}; copy or download it again, or "
        "give a file that torch.save or safetensors wrote"
    )


def _other_kind(path: Path, head: bytes) -> str:
    """Name a kind of file that is no PyTorch file, and what to do with it; "" for others."""
    for start, kind in _OTHER_KINDS.items():
        if head.startswith(start):
            return kind
    try:
        with path.open("rb") as file:
            file.seek(257)
            if file.read(5) == b"ustar":
                return "a tar archive: unpack it, and give the file of weights in it"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return ""
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return f"an archive of NumPy arrays, as {names[0]}: {_TO_TENSORS}"
    return f"a zip archive of {listed(names, 3)}: unpack it, and give the file of weights in it"


def _command(code: str, path: Path, load: str = "") -> str:
    quoted = json.dumps(str(path))
    return shlex.join(("python", "-c", code.format(path=quoted, load=load.format(path=quoted))))
