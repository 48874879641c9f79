"""`tsformer ladder`: the error of a graph, module by module."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from exporter.cli.parsing import Flag, Json, Paths
from exporter.cli.terminal import progress, show
from exporter.errors import LadderDivergence


def ladder(
    directory: Path,
    /,
    *,
    checkpoint: Path | None = None,
    video: Paths = None,
    engine: Flag = False,
    json_: Json = False,
    debug: Flag = False,
) -> int:
    """Name the module where a graph leaves its model: the error at each, beside eager's own.

    Examples:
        tsformer ladder build/fastformer-divided-224x224-fp16

    Args:
        directory: What `tsformer export` made; its model.onnx may have been changed since.
        checkpoint: Where the checkpoint lies now, if it was moved.
        video: Clips beside the synthetic inputs; may be given several times.
        engine: Climb in TensorRT, on a machine with a GPU.
        json_: Print JSON instead of a table.
        debug: Show the trace of an error.
    """
    del debug
    from exporter.proof.diagnose import ladder as climb
    from exporter.report import ladder_table, strict_json

    with progress(shown=not json_) as on_progress:
        found = climb(
            directory,
            checkpoint=checkpoint,
            video=tuple(video or ()),
            engine=engine,
            on_progress=on_progress,
        )
    show(strict_json(asdict(found)) if json_ else ladder_table(found))
    if found.first_divergence:
        raise LadderDivergence(
            f"{found.first_divergence} is the first module above its limit",
            remedy="see tsformer tune-precision" if found.precision != "fp32" else None,
        )
    return 0
