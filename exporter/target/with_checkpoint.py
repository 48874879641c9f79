"""An exported directory and its checkpoint -> parity, with the truth computed again by torch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from exporter.files.manifest import read_manifest
from exporter.inputs.clip_list import one_or_more
from exporter.inputs.clips import gather_inputs
from exporter.load import load_exported, resolve
from exporter.predict import Card
from exporter.proof.prove import describe_model, is_costly, make_references, make_structures
from exporter.proof.runtimes import judge_runtimes
from exporter.proof.structure import judge_structures
from exporter.results import Report
from exporter.run.job import calibrate
from exporter.run.stages import OnProgress, Stages, no_progress
from exporter.target.described import check_described
from exporter.target.runtimes import open_runtimes
from exporter.target.verify import report_of, unproven


def prove_again(
    directory: str | Path,
    *,
    checkpoint: str | Path | None = None,
    video: str | Path | Iterable[str | Path] = (),
    on_progress: OnProgress = no_progress,
) -> Report:
    """Compute the truth of an export again from its checkpoint, and judge by it; write nothing.

    The stronger form of `exporter.target.verify`, which trusts the reference of the export.

    Args:
        directory: A directory that `export` made.
        checkpoint: The path of its checkpoint, if that was moved.
        video: Clips, or one, beside the synthetic inputs.
        on_progress: Called while the stages run.

    Raises:
        NoExportError: if the directory is not an export.
        ManifestError: if a file is missing or was changed.
        CheckpointInputError: if the checkpoint is not the one that was exported.
        ParityError: if a runtime of this machine does not load or run a graph or an engine.
        RuntimeFailure: if ONNX Runtime is not installed, and nothing else runs the export.
    """
    directory, stages = Path(directory), Stages(on_progress)
    clips = tuple(map(Path, one_or_more(video)))
    manifest = read_manifest(directory)
    with stages.run("load"):
        spec, model = load_exported(manifest, Path(checkpoint) if checkpoint else None, clips)
        check_described(directory, Card.of(directory, manifest), describe_model(model))
    with stages.run("inputs"):
        how, few = (model.config, model.preprocessing), is_costly(model)
        inputs = gather_inputs(clips, *how, mask=spec.mask, few=few)
        calibration = calibrate(spec, model, spec.precision)
    with ExitStack() as resources, stages.run("parity") as stage, unproven():
        opened = open_runtimes(directory, manifest, resources, for_proof=True)
        references = make_references(spec, model, inputs, calibration, opened, stage)
        how = (spec.run_batch, spec.dynamic_batch, stage)
        parity = judge_runtimes(references, inputs, opened, *how)
        structures = make_structures(spec, model, inputs, calibration, directory, stage)
        kinds = structures, references, inputs, spec.precision
        parity += judge_structures(directory, *kinds, *how)
    return report_of(resolve(spec, model), manifest, opened, parity, stages)
