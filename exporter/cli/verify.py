"""`tsformer verify`: prove a directory again on the machine that uses it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from exporter.cli.parsing import Flag, Json, Paths
from exporter.cli.proof import require_proof
from exporter.cli.record import check_record, write_record
from exporter.cli.terminal import progress, show
from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.results import Report
    from exporter.run.stages import OnProgress


def verify(
    directory: Path,
    /,
    *,
    checkpoint: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")] = None,
    video: Paths = None,
    record: Flag = False,
    name: str | None = None,
    json_: Json = False,
    debug: Flag = False,
) -> int:
    """Prove an exported directory again, here: its files unchanged, its model the same.

    Runs every runtime this machine has, an engine built elsewhere included. The truth comes from
    reference.npz, so neither torch nor the checkpoint is needed. With --checkpoint, torch computes
    the truth again.

    Examples:
        tsformer verify build/fastformer-divided-512x512-fp32

        tsformer verify build/trained --checkpoint trained.safetensors

    Args:
        directory: What `tsformer export` made. Files that no runtime here needs may be missing.
        checkpoint: Compute the truth again from the checkpoint of the export, with torch; give a
            path if it was moved. Write it after the directory.
        video: A clip of an export with --no-store-clips, or with --checkpoint any clip; may be
            given several times.
        record: Write what was found into machines/NAME.json of the directory.
        name: NAME of the record (default: the name of this machine).
        json_: Print the report as JSON.
        debug: Show the trace of an error.
    """
    del debug
    check_record(name, record=record)
    from exporter.report import report_json, summary_table
    from exporter.results import overall_verdict

    with progress(shown=not json_) as on_progress:
        report = _prove(directory, checkpoint, tuple(video or ()), on_progress)
    if json_:
        show(report_json(report))
    else:
        show(summary_table(report))
    if record:
        write_record(directory, name, report.environment, report.parity)
    require_proof(overall_verdict(report.parity), report, directory)
    return 0


def _prove(
    directory: Path, checkpoint: list[Path] | None, video: tuple[Path, ...], on_progress: OnProgress
) -> Report:
    if checkpoint is None:
        from exporter.target.verify import verify as prove

        return prove(directory, video=video, on_progress=on_progress)
    if len(checkpoint) > 1:
        raise UsageError("--checkpoint", got=f"{len(checkpoint)} paths", expected="at most one")
    from exporter.target.with_checkpoint import prove_again

    path = checkpoint[0] if checkpoint else None
    return prove_again(directory, checkpoint=path, video=video, on_progress=on_progress)
