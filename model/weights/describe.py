"""Describe a model by what its checkpoint and the user tell: preprocessing, labels, notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from model.classifier import VideoClassifier
from model.config import ConfigError
from model.families.base import Family
from model.families.clip_settings import read_clip_settings
from model.families.file_settings import Settings
from model.preprocessing import Preprocessing
from model.task import check_task
from model.weights.file import WeightsFile

_SCALING = ("mean", "std", "short_side")  # the entries of `preprocessing` that a user may give


def describe_published(
    family: Family,
    weights: WeightsFile,
    settings: Settings,
    given: Mapping[str, Any],
    config: Any,  # noqa: ANN401
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return preprocessing, labels and task that a published file tells, and notes on them."""
    found = {
        "preprocessing": settings.preprocessing(config.channels),
        "labels": settings.labels(config.num_classes) if config.num_classes else None,
        "task": settings.task(config.num_classes),
    }
    known = {**{name: entry.value for name, entry in found.items() if entry}, **given}
    described = dict(family.describe(weights, known, config))
    notes = tuple(described.pop("notes", ()))
    loader, assumed = described.pop("loader", (family.name, family.preprocessing))
    for name, entry in found.items():
        if entry is None:
            continue
        if name not in given:
            described[name] = entry.value
            notes += (f"{name} by {entry.where}",)
        elif given[name] != entry.value:
            notes += (f"{name} {entry.value} by {entry.where}, replaced by {given[name]}",)
    if config.num_classes and "labels" not in {**given, **described}:
        notes += settings.other_labels()
    if assumed and "preprocessing" not in {**given, **described}:
        described["preprocessing"] = {"mean": assumed.mean, "std": assumed.std}
        notes += (f"preprocessing of the {loader} data loader assumed",)
    if config.num_classes == 1 and "task" not in {**given, **described}:
        notes += ("the task is not told: one output is taken as a value (--task)",)
    if config.num_classes == 0:
        notes += ("no classifier: the output is the class token after the last norm, (b, dim)",)
    described["clip"], more = _describe_clip(family, assumed, settings, config)
    return described, notes + more


def _describe_clip(
    family: Family,
    assumed: Preprocessing | None,
    settings: Settings,
    config: Any,  # noqa: ANN401
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what the settings tell of the clip, or what is assumed, and notes on it."""
    told, notes = read_clip_settings(settings, config, family.rules)
    if assumed:
        told["antialias"] = assumed.antialias
        if "sampling" not in told and assumed.sampling:
            views = {"views": assumed.views, "assumed": assumed.assumed}
            told |= {"sampling": assumed.sampling, **views}
            what = f"sampling {assumed.sampling}, views {assumed.views}"
            notes += (f"{assumed.assumed} assumed: {what}",)
    return told, notes


def describe(
    model: VideoClassifier,
    family: Family,
    given: Mapping[str, Any],
    description: Mapping[str, Any],
) -> None:
    """Set preprocessing, labels and task of a model; what the user gives comes first.

    Raises:
        ConfigError: if they are not valid, or do not fit the model.
    """
    how = model.preprocessing
    if described := description.get("preprocessing"):
        how = Preprocessing.from_dict(described)
    how = replace(how, rules=family.rules)
    if told := description.get("clip"):
        how = replace(how, **told)
    if entry := given.get("preprocessing"):
        if (
            not isinstance(entry, Mapping)
            or not {"mean", "std"} <= set(entry) <= set(_SCALING)
            or not all(isinstance(entry[name], (list, tuple)) for name in ("mean", "std"))
        ):
            raise ConfigError(f"preprocessing: got {entry!r}, expected mean and std per channel")
        how = how.changed({"short_side": None, **entry})
    if entry := given.get("clip"):
        if not isinstance(entry, Mapping):
            raise ConfigError(
                f"clip: got {entry!r}, expected a table, as {{'sampling': 'uniform'}}"
            )
        how = how.changed(entry)
    model.preprocessing = how
    labels = given.get("labels") or description.get("labels")
    if labels:
        if not isinstance(labels, (list, tuple)):
            raise ConfigError(f"labels: got {labels!r}, expected a list of names")
        model.labels = tuple(map(str, labels))
    if task := given.get("task") or description.get("task"):
        model.task = check_task(task, model.config.num_classes)
    check_described(model)


def stored_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Give the preprocessing as a checkpoint of ours stores it: `embedded` belongs to a graph."""
    stored = asdict(preprocessing)
    del stored["embedded"]
    return stored


def check_described(model: VideoClassifier) -> None:
    """Raise `ConfigError` unless preprocessing and labels fit the model's channels and classes."""
    config, means = model.config, len(model.preprocessing.mean)
    if means != config.channels:
        raise ConfigError(
            f"preprocessing: got {means} means, expected one for each of {config.channels} "
            "channels; give its mean and std with --config"
        )
    if model.labels is not None and len(model.labels) != config.num_classes:
        raise ConfigError(
            f"labels: got {len(model.labels)} names, expected {config.num_classes} (one for each "
            "class)"
        )
