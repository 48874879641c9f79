"""ExportSpec -> model: a trained one from its checkpoint, or a fresh one from the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from exporter.errors import CheckpointInputError, UsageError
from exporter.manifest import sha256
from exporter.spec import ExportSpec
from model import FastTimeSformer, FastTimeSformerConfig, load_checkpoint
from model.config import ConfigError
from model.weights_file import CheckpointError

# A fresh model, where the user says nothing else: that of the published README.
_FRESH: dict[str, Any] = {"frames": 5, "channels": 3, "height": 224, "width": 224, "num_classes": 2}
_MODEL_ARGUMENTS = {  # ExportSpec's name -> the constructor's
    "attn": "attn_mechanism",
    "scheme": "attn_type",
    **{name: name for name in ("frames", "channels", "num_classes", "dim", "depth", "heads")},
    **{name: name for name in ("dim_head", "patch_size", "semantics")},
}


def load_model(spec: ExportSpec) -> FastTimeSformer:
    """The checkpoint's model, or a fresh one from the seed.

    Raises:
        CheckpointInputError: if the checkpoint cannot be loaded as the spec says.
        UsageError: if a fresh model cannot be built.
    """
    given = {
        argument: value
        for name, argument in _MODEL_ARGUMENTS.items()
        if (value := getattr(spec, name)) is not None
    }
    if spec.res:
        given |= {"height": spec.res[0], "width": spec.res[1]}
    if spec.checkpoint:
        return _load_trained(spec, given)
    try:
        config = FastTimeSformerConfig(**(_FRESH | given))
    except ConfigError as error:
        raise UsageError(str(error)) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return FastTimeSformer.from_config(config).eval()


def _load_trained(spec: ExportSpec, given: Mapping[str, Any]) -> FastTimeSformer:
    assert spec.checkpoint is not None
    for name, value in given.items():
        if spec.config.get(name, value) != value:
            raise UsageError(
                f"--config says {name} is {spec.config[name]!r}, the command line {value!r}",
                remedy="give one of them",
            )
    semantics = spec.semantics or spec.config.get("semantics")
    config = {k: v for k, v in {**spec.config, **given}.items() if k != "semantics"}
    try:
        return load_checkpoint(spec.checkpoint, config=config, semantics=semantics)
    except CheckpointError as error:
        raise CheckpointInputError(str(error)) from error


def resolve(spec: ExportSpec, model: FastTimeSformer) -> dict[str, Any]:
    """The spec with everything the checkpoint or a default decided."""
    config = asdict(model.config)
    known = {name: config[argument] for name, argument in _MODEL_ARGUMENTS.items()}
    known |= {"res": [model.config.height, model.config.width], "batch": spec.run_batch}
    known["heads"] = model.config.num_heads
    said = {"height", "width", *_MODEL_ARGUMENTS.values()}  # above, as far as it is in force
    known["config"] = {name: value for name, value in spec.config.items() if name not in said}
    if spec.checkpoint:
        known["checkpoint_sha256"] = sha256(spec.checkpoint)
    return spec.to_dict() | known


def default_directory(spec: ExportSpec) -> Path:
    """A name under `build/` that tells exports apart."""
    stem = spec.checkpoint.stem if spec.checkpoint else None
    height, width = spec.res or (_FRESH["height"], _FRESH["width"])
    parts = [
        stem or f"{spec.attn or 'fastformer'}-{spec.scheme or 'divided'}",
        f"{height}x{width}" if spec.res or not stem else None,
        f"b{spec.run_batch}" if spec.run_batch > 1 else None,
        spec.precision,
    ]
    return Path("build") / "-".join(part for part in parts if part)


def check_same_checkpoint(spec: ExportSpec, recorded: Mapping[str, Any]) -> None:
    """Raise `CheckpointInputError` unless the spec's checkpoint has the hash that was recorded."""
    if spec.checkpoint is None:
        return
    if not spec.checkpoint.is_file():
        raise CheckpointInputError(
            f"{spec.checkpoint} is not there any more", remedy="say where it is with --checkpoint"
        )
    got, expected = sha256(spec.checkpoint), recorded["checkpoint_sha256"]
    if got != expected:
        raise CheckpointInputError(
            f"{spec.checkpoint} is not the checkpoint that was exported",
            got=f"sha256 {got[:12]}",
            expected=expected[:12],
        )
