"""Read directories of Hugging Face transformers' TimeSformer, without that library.

`config.json` describes the model, and `preprocessor_config.json` describes its preprocessing. The
weights are in one file, or in several shards with an index.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from model.families.huggingface_preprocessing import PROCESSOR_NAMES
from model.weights_file import CheckpointError, WeightsFile, read_json, read_weights

CONFIG = "config.json"
MODEL_TYPE = "timesformer"
_INDEX = ".index.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # or an index of shards in place of either


def read_directory(path: Path, base: str | Path | None = None) -> WeightsFile:
    """Read the weights of a directory and the JSON files beside them.

    Raises:
        CheckpointError: if a file is missing or damaged, or the model has another architecture.
    """
    if not (path / CONFIG).is_file():
        raise CheckpointError(
            f"{path} is a directory without {CONFIG}; expected a Hugging Face directory with "
            f"{CONFIG}, {PROCESSOR_NAMES[0]} and {' or '.join(_WEIGHTS)}"
        )
    config = read_json(path / CONFIG)
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{path / CONFIG} describes another architecture: got model_type "
            f"{config.get('model_type')!r}, expected {MODEL_TYPE!r}"
        )
    sidecars = {CONFIG: config}
    for name in PROCESSOR_NAMES:
        if (path / name).is_file():
            sidecars[name] = read_json(path / name)
    return WeightsFile(_read_state(path), sidecars=sidecars)


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
        lacking = sorted(name for name, at in places.items() if at == shard and name not in held)
        if lacking:
            raise CheckpointError(f"{file} lacks {lacking[0]}, which {index.name} places there")
        state |= held
    return state
