"""`tsformer verify`: prove a directory again on the machine that uses it."""

from __future__ import annotations

from pathlib import Path

from exporter.cli.parsing import Flag, Json, Paths
from exporter.cli.proof import require_proof
from exporter.cli.terminal import progress, show


def verify(
    directory: Path,
    /,
    *,
    checkpoint: Path | None = None,
    video: Paths = None,
    json_: Json = False,
    debug: Flag = False,
) -> int:
    """Prove an exported directory again, here: its files unchanged, its model the same.

    Runs every runtime this machine has, an engine built elsewhere included.

    Examples:
        tsformer verify build/fastformer-divided-512x512-fp32

    Args:
        directory: What `tsformer export` made.
        checkpoint: The new path of the checkpoint, if it was moved.
        video: More clips to prove it on; may be given several times.
        json_: Print the report as JSON.
        debug: Show the trace of an error.
    """
    del debug
    from exporter.pipeline import verify as verify_directory
    from exporter.report import report_json, summary_table
    from exporter.results import overall_verdict

    with progress(shown=not json_) as on_progress:
        report = verify_directory(
            directory, checkpoint=checkpoint, video=tuple(video or ()), on_progress=on_progress
        )
    if json_:
        show(report_json(report))
    else:
        show(summary_table(report))
    require_proof(overall_verdict(report.parity), report, directory)
    return 0
