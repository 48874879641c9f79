"""`tsformer build`: the engine of an export again, for the GPU at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.parsing import Flag, Json, Targets
from exporter.cli.proof import require_proof
from exporter.cli.terminal import progress, show

if TYPE_CHECKING:
    from exporter.results import Report


def build(
    directory: Path,
    /,
    *,
    engine: str = "auto",
    target: Targets = (),
    force: Flag = False,
    json_: Json = False,
    debug: Flag = False,
) -> int:
    """Build the engine of an export again, for the GPU at hand; needs neither torch nor onnx.

    Builds from model.tensorrt.onnx, then judges as `tsformer verify --record` does. Without a GPU
    the engine is built and not executed. The engine and the manifest change together.

    Examples:
        tsformer build build/trained --force

        tsformer build build/trained --engine rtx --target sm86,sm89

    Args:
        directory: What `tsformer export` made.
        engine: Builder: auto (default), rtx (TensorRT-RTX) or tensorrt.
        target: GPU architectures of a TensorRT-RTX engine, as sm86,sm89.
        force: Replace an engine that is whole.
        json_: Print JSON instead of lines.
        debug: Show the trace of an error.
    """
    del debug
    from dataclasses import asdict

    from exporter.report import engine_line, strict_json, summary_table
    from exporter.results import Report, overall_verdict
    from exporter.target.build import build as build_engine

    with progress(shown=not json_) as on_progress:
        made = build_engine(
            directory, engine=engine, targets=target, force=force, on_progress=on_progress
        )
        judged, why_not = _judge(directory)
    if json_:
        rows = [asdict(row) for row in judged.parity] if judged else []
        show(strict_json(asdict(made) | {"parity": rows, "not_judged": why_not}))
    elif judged:
        show(summary_table(judged))
    else:
        facts = made.engine | {"reason": why_not}
        show(f"{engine_line(Report({}, {}, (), (), (), facts))}\n{_source_line(made.graph)}")
    if judged:
        require_proof(overall_verdict(judged.parity), judged, directory)
    return 0


def _source_line(graph: str) -> str:
    from exporter.files.manifest import ENGINE_GRAPH

    why = f": the export has no {ENGINE_GRAPH}, which --for tensorrt makes"
    return f"Built from {graph}{'' if graph == ENGINE_GRAPH else why}"


def _judge(directory: Path) -> tuple[Report | None, str]:
    """Verify the new engine and record what was found; or say why that is not possible here."""
    from exporter.files.reference import REFERENCE
    from exporter.runners.cuda import NO_GPU, look_for_gpu
    from exporter.target.record import keep
    from exporter.target.verify import verify

    gpu = look_for_gpu()
    if gpu.gpu is None:
        return None, gpu.why_not if gpu.seen else f"{NO_GPU} to execute the engine"
    if not (directory / REFERENCE).is_file():
        return None, f"{directory} has no {REFERENCE} to judge it by"
    report = verify(directory)
    keep(directory, None, report.environment, report.parity)
    return report, ""
