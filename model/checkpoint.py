"""Load checkpoints into models and save models as checkpoints.

Values that the file contains are inferred; `config` supplies the others. Our own files are
safetensors with the configuration in their metadata, so they need no `config`. Each file of
`model/families/` reads the checkpoints of one published family.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from model.classifier import VideoClassifier
from model.config import SEMANTICS, ConfigError, check_choice
from model.families.base import Family, Told
from model.families.facebookresearch import FACEBOOKRESEARCH
from model.families.fast_timesformer import FAST_TIMESFORMER
from model.families.file_settings import Settings
from model.families.frozen_in_time import FROZEN_IN_TIME
from model.families.huggingface import HUGGINGFACE
from model.families.huggingface_directory import read_directory
from model.families.mmaction2 import MMACTION2
from model.families.timesformer_pytorch import TIMESFORMER_PYTORCH
from model.limits import claim_fault
from model.weights.describe import (
    check_described,
    describe,
    describe_published,
    stored_preprocessing,
)
from model.weights.file import (
    METADATA_KEY,
    CheckpointError,
    WeightsFile,
    is_directory,
    read_weights,
)
from model.weights.find import choose, find_models
from model.weights.head import AUTO
from model.weights.merge import (
    add_settings,
    check_config,
    config_names,
    load_state,
    merge,
    name_sources,
    notes_on_told,
)
from model.weights.restore import restore
from model.weights.select import select

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        FAST_TIMESFORMER,
        FROZEN_IN_TIME,  # before the family whose keys its files have too
        FACEBOOKRESEARCH,
        HUGGINGFACE,
        TIMESFORMER_PYTORCH,
        MMACTION2,
    )
}
MODELS: Mapping[str, type[VideoClassifier]] = {
    family.model.family: family.model for family in FAMILIES.values()
}


def load_checkpoint(
    path: str | Path,
    family: str | None = None,
    config: Mapping[str, Any] | None = None,
    semantics: str | None = None,
    weights: str | None = None,
) -> VideoClassifier:
    """Load a trained model, in evaluation mode and float32.

    Args:
        path: A file of weights, or a directory of Hugging Face: a model or a LoRA adapter.
        family: The family of the checkpoint. By default, its keys decide.
        config: Constructor arguments of the family that the file does not contain. It may also hold
            `preprocessing` (`{"mean": [...], "std": [...]}`, optional `short_side`), `labels`,
            `task` (what the logits mean), `head` (the path of the classifier in the file, or `None`
            for the features) and `base_model` (the directory of the model that an adapter changes).
        semantics: `upstream` (default) or `paper`, for a checkpoint of the published
            FastTimeSformer. No other family has this choice.
        weights: `plain` (default), `ema`, or the path in the file, if it holds several models.

    Returns:
        A model that maps `(b, f, c, h, w)` to `(b, classes)`, whatever layout its family uses; to
        `(b, dim)` if the checkpoint has no classifier. Its `preprocessing`, `labels`, `task`
        and `notes` are set.

    Raises:
        CheckpointError: if the file cannot be read, belongs to another family, contradicts
            `config`, or leaves a value unknown. Also if reading the file would run code from it.
    """
    path = Path(path)
    if not isinstance(config or {}, Mapping):
        raise CheckpointError(f"config: got {config!r}, expected a mapping")
    given = dict(config or {})
    head, base = given.pop("head", AUTO), given.pop("base_model", None)
    try:
        if semantics is not None:
            check_choice("semantics", semantics, SEMANTICS)
            given["semantics"] = semantics
        file = read_directory(path, base) if is_directory(path) else read_weights(path)
        if file.description:
            reader, found = None, file
        else:
            reader, found = _find(file, family, weights, head)
        if reader is None:
            model = _build_own(found, family, given)
        else:
            model = _build_published(reader, found, given)
        model.notes = found.notes + model.notes
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model.eval()


def save_checkpoint(model: VideoClassifier, path: str | Path) -> None:
    """Write weights, configuration, preprocessing and labels as one safetensors file.

    The write is atomic: if it fails, no partial file remains and an old file stays unchanged.

    Raises:
        ConfigError: if the model's preprocessing or labels do not fit its channels or classes.
    """
    check_described(model)
    path = Path(path)
    description = {
        "version": 1,
        "family": model.family,
        "config": asdict(model.config),
        "preprocessing": stored_preprocessing(model.preprocessing),
        "labels": model.labels,
        "task": model.task,
    }
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(save(state, metadata={METADATA_KEY: json.dumps(description)}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _find(
    file: WeightsFile, name: str | None, which: str | None, head: str | None
) -> tuple[Family | None, WeightsFile]:
    """Find a model in a file; return its family, which is `None` for our own, and its weights."""
    if file.sidecars and name not in (None, HUGGINGFACE.name):
        raise ConfigError(f"is a directory of {HUGGINGFACE.name}, but the family is {name}")
    file = restore(file)
    models = find_models(file, FAMILIES, name)
    chosen, notes = choose(models, file, which)
    if file.sidecars and chosen.family is not HUGGINGFACE:
        other = chosen.family.name if chosen.family else "ours"
        raise ConfigError(
            f"is a directory of {HUGGINGFACE.name}, but holds weights of {other}; give the file of "
            "weights"
        )
    found = select(replace(file, notes=file.notes + notes), chosen, models, head)
    return chosen.family, found if chosen.family is None else chosen.family.prepare(found)


def _build_own(
    weights: WeightsFile, family: str | None, given: Mapping[str, Any]
) -> VideoClassifier:
    """Build the model that the metadata of our own file describes."""
    kind = weights.description.get("family", FAST_TIMESFORMER.model.family)
    check_choice("model family in its metadata", kind, MODELS)
    reader = next(entry for entry in FAMILIES.values() if entry.model.family == kind)
    if family is not None:
        check_choice("checkpoint family", family, FAMILIES)
        if FAMILIES[family].model is not reader.model:
            raise ConfigError(f"the metadata names family {kind!r}, but {family!r} was given")
        reader = FAMILIES[family]
    stored = weights.description.get("config", {})
    check_config(stored, reader)
    told = {name: Told(value, "its metadata") for name, value in stored.items()}
    given = reader.translate(given)
    check_config(given, reader)
    free = reader.free - {"frames", "height", "width", "heads"}
    values = merge(given, told, free, reader.needed)
    config = reader.model.config_class(**values)
    if fault := claim_fault(config, weights.state):
        raise ConfigError(fault)
    model = reader.model.from_config(config)
    told_of = ("preprocessing", "labels", "task")
    describe(model, reader, given, {name: weights.description.get(name) for name in told_of})
    load_state(model, weights.state)
    return model


def _build_published(
    family: Family, weights: WeightsFile, given: Mapping[str, Any]
) -> VideoClassifier:
    """Build the model that the names and shapes of a published state dict describe."""
    given = family.translate(given)
    check_config(given, family)
    names, settings = config_names(family), Settings(weights)
    if "semantics" in names:
        given.setdefault("semantics", "upstream")
    beside = {name: entry for name, entry in settings.told().items() if name in names}
    hinted = {**{name: entry.value for name, entry in beside.items()}, **given}
    told = add_settings(family.infer(weights, hinted), beside, given)
    values = merge(given, told, family.free, family.needed)
    try:
        config = family.model.config_class(**values)
    except ConfigError as error:
        raise ConfigError(f"{error}{name_sources(str(error), told, beside, given)}") from error
    if fault := claim_fault(config, weights.state):
        raise ConfigError(fault)
    stated = notes_on_told(told, beside, given)
    state, notes = family.adapt(weights.state, config)
    model = family.model.from_config(config)
    described, more = describe_published(family, weights, settings, given, config)
    model.notes = stated + notes + more
    describe(model, family, given, described)
    load_state(model, state)
    return model
