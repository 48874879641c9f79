"""An exported directory -> parity of every runtime of this machine, by the proof that travels.

Needs neither torch nor the checkpoint: `reference.npz` holds the truth and the floors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from exporter.errors import ManifestError, ParityError, RuntimeFailure
from exporter.files.manifest import read_manifest
from exporter.files.reference import REFERENCE, KeptReference, read_reference
from exporter.inputs.clip_list import one_or_more
from exporter.inputs.kept import Regained, regain_given, regain_inputs
from exporter.machine import environment
from exporter.predict import Card
from exporter.proof.runtimes import judge_runtimes, kept_floors, references_of
from exporter.proof.structure import TARGETS_OF_GRAPHS, judge_structures, structures_of
from exporter.results import Parity, Report
from exporter.run.stages import OnProgress, Stages, no_progress
from exporter.runners.open import Opened
from exporter.target.described import check_described
from exporter.target.runtimes import open_runtimes


def verify(
    directory: str | Path,
    *,
    video: str | Path | Iterable[str | Path] = (),
    on_progress: OnProgress = no_progress,
) -> Report:
    """Prove an exported directory again with every runtime of this machine; write nothing.

    On a machine with a GPU, an engine that cannot be executed is an error.

    Args:
        directory: A directory that `export` made. Files that no runtime needs may be missing.
        video: Clips of the export, or one, that its reference knows by their hash only.
        on_progress: Called while the stages run.

    Raises:
        NoExportError: if the directory is not an export.
        ManifestError: if a file was changed, or the reference is missing or not that of the export.
        VideoError: if a given clip cannot be read, or is not one of the export.
        ParityError: if a runtime of this machine does not load or run a graph or an engine.
        RuntimeFailure: if ONNX Runtime is not installed, and nothing else runs the export.
    """
    directory, stages = Path(directory), Stages(on_progress)
    with stages.run("load"):
        manifest = read_manifest(directory)
        card = Card.of(directory, manifest)
        kept = read_reference(directory / REFERENCE)
        _check_structures(directory, manifest, kept)
        _check_floors(directory, manifest, kept)
        check_described(directory, card, kept.described)
    with stages.run("inputs") as stage:
        if kept.given or not card.takes_clips:
            found = regain_given(kept)
        else:
            found = regain_inputs(
                kept,
                tuple(map(Path, one_or_more(video))),
                card.config,
                card.preprocessing,
                on_clip=lambda name: stage.progress(None, name),
            )
    with ExitStack() as resources, stages.run("parity") as stage, unproven():
        opened = open_runtimes(directory, manifest, resources, for_proof=True)
        references = references_of(kept, found.places, card.task)
        how = (manifest["spec"]["batch"], card.dynamic_batch, stage)
        parity = judge_runtimes(references, found.inputs, opened, *how)
        kinds = structures_of(kept, found.places), references, found.inputs, card.precision
        parity += judge_structures(directory, *kinds, *how)
    return report_of(_spec(manifest, kept, found), manifest, opened, parity, stages)


@contextmanager
def unproven() -> Iterator[None]:
    """Say that an export is not proven if a runtime that is installed fails on a file of it."""
    try:
        yield
    except RuntimeFailure as error:
        if isinstance(error.__cause__, ImportError):
            raise
        raise ParityError(f"not proven here: {error}") from error


def report_of(
    spec: dict[str, Any],
    manifest: Mapping[str, Any],
    opened: Opened,
    parity: tuple[Parity, ...],
    stages: Stages,
) -> Report:
    """Make the report of a directory that was judged on this machine."""
    return Report(
        spec=spec,
        environment=environment.describe(),
        stages=tuple(stages.done),
        parity=parity,
        latency=(),
        engine=engine_here(manifest["engine"], opened),
        graph=manifest.get("graph", {}),
    )


def engine_here(facts: Mapping[str, Any], opened: Opened) -> dict[str, Any]:
    """Add to the facts of an engine whether this machine executed it."""
    if "flavour" not in facts:
        return dict(facts)
    status = "built and executed" if opened.has_engine else "built, not executed"
    return {**facts, "status": status}


def _check_structures(directory: Path, manifest: Mapping[str, Any], kept: KeptReference) -> None:
    """Raise unless the reference has the structure of every graph: a pass is both proofs."""
    for file in TARGETS_OF_GRAPHS:
        if file in manifest["files"] and file not in kept.structures:
            raise ManifestError(
                f"{directory / REFERENCE} has no truth of the structure of {file}",
                remedy="export it again, or compute the truth with verify --checkpoint (needs "
                "torch)",
            )


def _check_floors(directory: Path, manifest: Mapping[str, Any], kept: KeptReference) -> None:
    """Raise unless the manifest has the floors of the reference: they set the tolerance."""
    noted = manifest.get("floors", {})
    for form, got in kept_floors(kept).items():
        expected = noted.get(form)
        same = isinstance(expected, float) and math.isclose(got, expected, rel_tol=1e-6)
        if not same and (expected is not None or math.isfinite(got)):
            raise ManifestError(
                f"{directory / REFERENCE} is not the reference of this export: its floor of {form}",
                got=f"{got:.3g}",
                expected=expected,
                remedy="copy the directory again, or export it again",
            )


def _spec(manifest: Mapping[str, Any], kept: KeptReference, found: Regained) -> dict[str, Any]:
    """Give the spec of the export, with the clips that were judged here."""
    entries = [kept.inputs[place] for place in found.places]
    clips = [entry.name for entry in entries if entry.clip_sha256]
    return manifest["spec"] | {"video": clips, "clips_not_given": list(found.missing)}
