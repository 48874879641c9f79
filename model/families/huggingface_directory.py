"""Read directories of Hugging Face transformers' TimeSformer, without that library.

`config.json` describes the model, and `preprocessor_config.json` describes its preprocessing. The
weights are in one file, or in several shards with an index.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model.config import ConfigError
from model.families.huggingface_adapter import ADAPTER, MERGE, merge_adapter, read_adapter
from model.families.huggingface_preprocessing import PROCESSOR_NAMES
from model.weights.file import CheckpointError, WeightsFile, read_json, read_weights
from model.weights.flatten import without_wrapping
from model.words import listed

CONFIG = "config.json"
MODEL_TYPE = "timesformer"
_INDEX = ".index.json"
_SUFFIXES = (".pth", ".pt", ".pyth", ".ckpt", ".bin", ".safetensors", ".pdparams")
_STATE = re.compile(r"(?i)\w*optim|sched|scaler|rng|random|training_args")  # of the training
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # or an index of shards in place of either


def read_directory(path: Path, base: str | Path | None = None) -> WeightsFile:
    """Read the weights of a directory and the JSON files beside them.

    Args:
        path: A model, or a LoRA adapter of PEFT.
        base: The directory of the model that an adapter changes; by default the adapter names it.

    Raises:
        CheckpointError: if a file is missing or damaged, or the model has another architecture.
        ConfigError: if an adapter does not fit its base model.
    """
    if (path / ADAPTER).is_file():
        return _read_adapted(path, base)
    _check_is_model(path)
    config = read_json(path / CONFIG)
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{path / CONFIG} describes another architecture: got model_type "
            f"{config.get('model_type')!r}, expected {MODEL_TYPE!r}; if its weights are those of a "
            "TimeSformer, give the file of weights"
        )
    sidecars = {CONFIG: config, **_read_processors(path)}
    return WeightsFile(_read_state(path), sidecars=sidecars)


def _check_is_model(path: Path) -> None:
    if (path / CONFIG).is_file():
        return
    if (path / ".metadata").is_file():
        command = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        raise CheckpointError(
            f"{path} is a distributed checkpoint of PyTorch; convert it: {command} "
            f"{shlex.quote(str(path))} weights.pth"
        )
    if (path / "zero_to_fp32.py").is_file():
        raise CheckpointError(
            f"{path} is a directory of DeepSpeed; convert it: cd {shlex.quote(str(path))} && "
            "python zero_to_fp32.py . whole, and give the file of weights that it writes"
        )
    files = [path / name for name in _WEIGHTS if (path / name).is_file()]
    files = files or _list_weights(path)
    inner = [file.parent for name in (CONFIG, ADAPTER) for file in sorted(path.glob(f"*/{name}"))]
    if files or inner:
        raise CheckpointError(
            f"{path} is a directory without {CONFIG}; give {listed(inner or files, 3)}"
        )
    raise CheckpointError(
        f"{path} is a directory without {CONFIG}; expected a Hugging Face directory with "
        f"{CONFIG}, {PROCESSOR_NAMES[0]} and {' or '.join(_WEIGHTS)}"
    )


def _list_weights(path: Path) -> list[Path]:
    """List the files of a directory, and of those in it, that have the suffix of weights."""
    for pattern in ("*", "*/*"):
        files = [file for file in path.glob(pattern) if file.suffix in _SUFFIXES and file.is_file()]
        if found := sorted(file for file in files if not _STATE.match(file.name)):
            return found
    return []


def _read_processors(path: Path) -> dict[str, dict[str, Any]]:
    return {name: read_json(path / name) for name in PROCESSOR_NAMES if (path / name).is_file()}


def find_base(path: Path) -> str | None:
    """Return the model that an adapter directory names, or `None` for another directory."""
    if not (path / ADAPTER).is_file():
        return None
    return str(read_json(path / ADAPTER).get("base_model_name_or_path") or "")


def _read_adapted(path: Path, given: str | Path | None) -> WeightsFile:
    """Read an adapter and the model that it changes, and merge them."""
    adapter = read_adapter(path)
    named = str(given or adapter.base)
    places = [Path(named), path / named] if named else []
    base = next((place for place in places if place.is_dir() and place != path), None)
    if base is None:
        raise ConfigError(
            f"is an adapter of {named or 'a model that it does not name'}, which is no directory "
            "here; download that model, and give it with --config "
            '\'{"base_model": "DIRECTORY"}\''
        )
    if (base / ADAPTER).is_file():
        raise ConfigError(f"is an adapter of {base}, which is an adapter itself; {MERGE}")
    whole = read_directory(base)
    state = merge_adapter(adapter, whole.state)
    config = dict(read_json(path / CONFIG) if (path / CONFIG).is_file() else whole.sidecars[CONFIG])
    classes = next((len(t) for key, t in state.items() if key.endswith("classifier.weight")), 0)
    notes = (f"LoRA adapter merged into {base}",)
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and len(labels) not in (0, classes):
        config |= {"id2label": None, "label2id": None}
        notes += (f"the classifier of the adapter has {classes} classes without names",)
    sidecars = {**whole.sidecars, **_read_processors(path), CONFIG: config}
    return WeightsFile(state, sidecars=sidecars, notes=notes)


def _read_state(path: Path) -> Mapping[str, Tensor]:
    for name in _WEIGHTS:
        if (path / name).is_file():
            return read_weights(path / name).state
        index = path / f"{name}{_INDEX}"
        if index.is_file():
            return _read_shards(index)
    raise CheckpointError(
        f"{path} has no weights: expected {' or '.join(_WEIGHTS)}, or shards with "
        f"{_WEIGHTS[0]}{_INDEX} or {_WEIGHTS[1]}{_INDEX}"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise CheckpointError(f"{index} has no weight_map: expected a file for each weight")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(map(str, places.values()))):
        file = index.parent / shard
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} names {shard!r}, which is not a file beside it")
        if not file.is_file():
            raise CheckpointError(f"{index} names the shard {shard}, which is missing beside it")
        held = read_weights(file).state
        lacking = sorted(
            name
            for name, at in places.items()
            if at == shard and without_wrapping(name) not in held
        )
        if lacking:
            raise CheckpointError(f"{file} lacks {lacking[0]}, which {index.name} places there")
        state |= held
    return state
