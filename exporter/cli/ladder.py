"""`tsformer ladder`: measure the error of a graph, module by module."""

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
    """Find the first module where a graph deviates from its model.

    The output lists the error of each module, beside the error of eager PyTorch.

    Examples:
        tsformer ladder build/fastformer-divided-224x224-fp16

    Args:
        directory: A directory that tsformer export wrote; its model.onnx may have changed since.
        checkpoint: The new path of the checkpoint, if it was moved.
        video: Clips to add to the synthetic inputs; may be given several times.
        engine: Run the graph in TensorRT, on a machine with a GPU.
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
