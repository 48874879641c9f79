"""An exported directory -> parity of every runtime of this machine, by the proof that travels.

Needs neither torch nor the checkpoint: `reference.npz` holds the truth and the floors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from exporter.errors import ManifestError
from exporter.files.manifest import read_manifest
from exporter.files.reference import REFERENCE, KeptReference, read_reference
from exporter.inputs.kept import Regained, regain_given, regain_inputs
from exporter.machine import environment
from exporter.predict import Card
from exporter.proof.runtimes import judge_runtimes, kept_floors, references_of
from exporter.proof.structure import judge_structures, structures_of
from exporter.results import Parity, Report
from exporter.run.stages import OnProgress, Stages, no_progress
from exporter.runners.open import Opened
from exporter.target.runtimes import open_runtimes


def verify(
    directory: str | Path,
    *,
    video: tuple[Path, ...] = (),
    on_progress: OnProgress = no_progress,
) -> Report:
    """Prove an exported directory again with every runtime of this machine; write nothing.

    On a machine with a GPU, an engine that cannot be executed is an error.

    Args:
        directory: A directory that `export` made. Files that no runtime needs may be missing.
        video: Clips of the export that its reference knows by their hash only.
        on_progress: Called while the stages run.

    Raises:
        NoExportError: if the directory is not an export.
        ManifestError: if a file was changed, or the reference is missing or not that of the export.
        VideoError: if a given clip cannot be read, or is not one of the export.
        RuntimeFailure: if no runtime works here, or a graph or an engine does not load.
    """
    directory, stages = Path(directory), Stages(on_progress)
    with stages.run("load"):
        manifest = read_manifest(directory)
        card = Card.of(directory, manifest)
        kept = read_reference(directory / REFERENCE)
        _check_floors(directory, manifest, kept)
    with stages.run("inputs") as stage:
        if kept.given or not card.takes_clips:
            found = regain_given(kept)
        else:
            found = regain_inputs(
                kept,
                video,
                card.config,
                card.preprocessing,
                on_clip=lambda name: stage.progress(None, name),
            )
    with ExitStack() as resources, stages.run("parity") as stage:
        opened = open_runtimes(directory, manifest, resources, for_proof=True)
        references = references_of(kept, found.places, card.task)
        how = (manifest["spec"]["batch"], card.dynamic_batch, stage)
        parity = judge_runtimes(references, found.inputs, opened, *how)
        kinds = structures_of(kept, found.places), references, found.inputs, card.precision
        parity += judge_structures(directory, *kinds, *how)
    return report_of(_spec(manifest, kept, found), manifest, opened, parity, stages)


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
