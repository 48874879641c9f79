"""ExportSpec -> model: trained, from a checkpoint, or fresh, from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from exporter.errors import CheckpointInputError, UsageError
from exporter.files.adapter import base_of
from exporter.files.hub import Snapshot, fetch, parse_name
from exporter.files.manifest import MODULE, hash_checkpoint
from exporter.rewrite.outputs import give_outputs
from exporter.rewrite.pixels import take_pixels
from exporter.spec import DEFAULT_FAMILY, MODEL_ARGUMENTS, ExportSpec, clip_of
from model import load_checkpoint
from model.checkpoint import FAMILIES
from model.classifier import VideoClassifier
from model.config import FRESH, PRESETS, ConfigError, ViTConfig, check_choice
from model.outputs import FEATURES, LOGITS, OUTPUTS
from model.task import check_task
from model.weights.file import CheckpointError

_PRESET_FAMILY = "facebookresearch"


def load_model(spec: ExportSpec) -> VideoClassifier:
    """Load the model of the checkpoint, or make a fresh one; its inputs are those of the graph.

    Raises:
        CheckpointInputError: if the checkpoint cannot be loaded with the arguments of the spec.
        UsageError: if a fresh model cannot be built.
    """
    given = {name: value for name in MODEL_ARGUMENTS if (value := getattr(spec, name)) is not None}
    if spec.res:
        given |= {"height": spec.res[0], "width": spec.res[1]}
    model = _load_trained(spec, given) if spec.checkpoint else _make_fresh(spec, given)
    if spec.task is not None:
        _set_task(model, spec.task)
    if spec.mask and "mask" not in model.input_names:
        raise UsageError(
            "--mask needs a model whose forward takes a frame mask",
            got=model.family,
            expected="timesformer_pytorch",
        )
    give_outputs(model, _outputs(spec, model))
    if spec.embed_preprocess:
        take_pixels(model)
    return model


def _outputs(spec: ExportSpec, model: VideoClassifier) -> tuple[str, ...]:
    """Name what the graph gives, in the order of `OUTPUTS`; features where there is no classifier.

    Raises:
        UsageError: if the model does not have an output, or accuracy is asked for without logits.
    """
    names = {word.replace("-", "_") for word in spec.outputs}
    names = names or {LOGITS if model.config.num_classes else FEATURES}
    if spec.eval and LOGITS not in names:
        raise UsageError("--eval needs logits", remedy="add logits to --outputs, or omit --eval")
    try:
        model.check_outputs(names)
    except ConfigError as error:
        raise UsageError(f"--outputs: {error}", remedy="name other outputs") from error
    return tuple(name for name in OUTPUTS if name in names)


def _set_task(model: VideoClassifier, task: str) -> None:
    """Set what the logits mean; what the user says comes before what the checkpoint tells."""
    try:
        model.task = check_task(task, model.config.num_classes)
    except ConfigError as error:
        raise UsageError(f"--{error}") from error


@contextmanager
def in_threads(threads: int) -> Iterator[None]:
    """Let PyTorch use so many threads, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make_fresh(spec: ExportSpec, given: Mapping[str, Any]) -> VideoClassifier:
    name = spec.model or DEFAULT_FAMILY
    preset = PRESETS.get(name)
    family = FAMILIES[_PRESET_FAMILY if preset else name]
    if preset is None and issubclass(family.model.config_class, ViTConfig):
        preset = PRESETS["TimeSformer"]
    try:
        defaults = {"channels": 3, **preset} if preset else FRESH
        values = family.translate({**defaults, **given})
        known = [field.name for field in fields(family.model.config_class)]
        for argument in values:
            check_choice(f"argument of {name}", argument, known)
        config = family.model.config_class(**values)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    # With more threads the QR of random features differs in its last bits.
    with torch.random.fork_rng(devices=[]), in_threads(1):
        torch.manual_seed(spec.seed)
        model = family.model.from_config(config).eval()
    clip = clip_of(spec.sampling, spec.views)
    model.preprocessing = replace(model.preprocessing, rules=family.rules).changed(clip)
    return model


def _load_trained(spec: ExportSpec, given: Mapping[str, Any]) -> VideoClassifier:
    assert spec.checkpoint is not None
    for name, value in given.items():
        if spec.config.get(name, value) != value:
            raise UsageError(
                f"--config says {name} is {spec.config[name]!r}, the command line {value!r}",
                remedy="give one of them",
            )
    if spec.model in PRESETS:
        raise UsageError(
            f"--model {spec.model} names sizes, but --checkpoint has its own",
            remedy="omit --model, or give the family of the checkpoint",
        )
    config = {**spec.config, **given}
    if clip := clip_of(spec.sampling, spec.views):
        config["clip"] = {**config.get("clip", {}), **clip}
    semantics = config.pop("semantics", None)
    path, snapshot = locate(spec.checkpoint)
    try:
        if base := base_of(path, config):
            config["base_model"] = _locate_base(str(base), path)
        model = load_checkpoint(path, spec.model, config, semantics, spec.weights)
    except CheckpointError as error:
        raise CheckpointInputError(str(error)) from error
    if snapshot is not None:
        model.notes = (f"checkpoint {snapshot.pinned} of the hub", *model.notes)
    return model


def locate(checkpoint: Path) -> tuple[Path, Snapshot | None]:
    """Return where a checkpoint lies; one of the hub is downloaded, and its snapshot returned.

    Raises:
        CheckpointInputError: if the repository of the hub cannot be read.
    """
    name = parse_name(checkpoint)
    if name is None:
        return checkpoint, None
    snapshot = fetch(name)
    return snapshot.directory, snapshot


def _locate_base(base: str, adapter: Path) -> str:
    """Return the directory of the model that an adapter changes, from the hub if need be."""
    if (adapter / base).is_dir():
        return base
    try:
        return str(locate(Path(base))[0])
    except CheckpointInputError as error:
        raise CheckpointInputError(
            f"{adapter} is an adapter of {base}: {error}",
            remedy='or name it with --config \'{"base_model": "DIRECTORY"}\'',
        ) from error


def load_exported(
    manifest: Mapping[str, Any], checkpoint: Path | None = None, video: tuple[Path, ...] = ()
) -> tuple[ExportSpec, VideoClassifier]:
    """Read the spec of an export, and make its model again from the seed or the checkpoint.

    Raises:
        UsageError: if it is the export of a module, which only its author makes again.
        CheckpointInputError: if the checkpoint is not the one that was exported.
    """
    if manifest["model"]["family"] == MODULE:
        why = "is the export of a module of your own, which no checkpoint makes again"
        remedy = "verify without --checkpoint, bench, inspect, lint and triton take it"
        raise UsageError(f"this directory {why}", remedy=remedy)
    spec = replace(ExportSpec.from_dict(manifest["spec"]), video=video)
    spec = replace(spec, checkpoint=checkpoint or spec.checkpoint, allow_ill_conditioned=False)
    check_same_checkpoint(spec, manifest["spec"])
    return spec, load_model(spec)


def resolve(spec: ExportSpec, model: VideoClassifier) -> dict[str, Any]:
    """Give the spec as a dict, with the values that the checkpoint or a default decides."""
    config = model.config
    known = {name: getattr(config, name) for name in MODEL_ARGUMENTS if hasattr(config, name)}
    known |= {
        "heads": getattr(config, "num_heads", known.get("heads")),
        "model": spec.model if spec.checkpoint else spec.model or DEFAULT_FAMILY,
        "res": [config.height, config.width],
        "task": model.task,
        "sampling": str(model.preprocessing.sampling) if model.preprocessing.sampling else None,
        "views": str(model.preprocessing.views),
        "clip": list(model.preprocessing.sentences),
        "batch": spec.run_batch,
        "opset": spec.graph_opset,
        "targets": list(spec.engine_targets),
        "outputs": [name.replace("_", "-") for name in model.output_names],
        "notes": list(model.notes),
        "config": _what_else_config_says(spec, model),
    }
    if spec.checkpoint:
        path, snapshot = locate(spec.checkpoint)
        known["checkpoint_sha256"] = hash_checkpoint(path)
        if snapshot is not None:
            known |= {"checkpoint": snapshot.pinned, "checkpoint_commit": snapshot.commit}
    return spec.to_dict() | known


def _what_else_config_says(spec: ExportSpec, model: VideoClassifier) -> dict[str, Any]:
    """Give the entries of `--config` that are in no other entry of the resolved spec."""
    families = [family for family in FAMILIES.values() if isinstance(model, family.model)]
    placed = {"height", "width", "attn_mechanism", "attn_type", *MODEL_ARGUMENTS}
    return {
        name: value
        for name, value in spec.config.items()
        if not any(set(family.translate({name: value})) <= placed for family in families)
    }


def check_same_checkpoint(spec: ExportSpec, recorded: Mapping[str, Any]) -> None:
    """Raise `CheckpointInputError` unless the checkpoint has the recorded hash."""
    if spec.checkpoint is None:
        return
    if parse_name(spec.checkpoint) is None and not spec.checkpoint.exists():
        raise CheckpointInputError(
            f"{spec.checkpoint} is missing", remedy="say where it is with --checkpoint"
        )
    if "checkpoint_sha256" not in recorded:
        raise CheckpointInputError(
            "the export was made from a seed, not from a checkpoint",
            got=spec.checkpoint,
            remedy="omit --checkpoint",
        )
    path, snapshot = locate(spec.checkpoint)
    if snapshot is not None and snapshot.commit == recorded.get("checkpoint_commit"):
        return  # a commit means the same files, whatever else lies in the cache
    got, expected = hash_checkpoint(path), recorded["checkpoint_sha256"]
    if got != expected:
        raise CheckpointInputError(
            f"{spec.checkpoint} is not the checkpoint that was exported",
            got=f"sha256 {got[:12]}",
            expected=expected[:12],
        )
