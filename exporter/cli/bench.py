"""`tsformer bench`: time an export on the machine that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from exporter.cli.parsing import Flag, Json, words_of
from exporter.cli.record import check_record, write_record
from exporter.cli.terminal import progress, show
from exporter.spec import ExportSpec

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exporter.target.bench import Benched


def _sizes(_type: Any, tokens: Sequence[Any]) -> tuple[int, ...]:  # noqa: ANN401
    words = [word for token in tokens for word in words_of(token.value)]
    if not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"got {', '.join(words)!r}, expected whole numbers above 0, as in 1,4")
    return tuple(dict.fromkeys(map(int, words)))


def bench(
    directory: Path,
    /,
    *,
    seconds: float = ExportSpec.bench_seconds,
    batch: Annotated[tuple[int, ...], Parameter(converter=_sizes, n_tokens=1, negative="")] = (),
    record: Flag = False,
    name: str | None = None,
    json_: Json = False,
    debug: Flag = False,
) -> int:
    """Time every runtime of this machine on an exported directory; needs no torch.

    Runs are interleaved. Times are from host memory to host memory; on a GPU also of the device
    alone, with and without a CUDA graph.

    Examples:
        tsformer bench build/trained

        tsformer bench build/trained --seconds 30 --batch 1,4 --record

    Args:
        directory: What `tsformer export` made. Files that no runtime here needs may be missing.
        seconds: Time for each batch; every runtime runs at least ten times.
        batch: Clips of a run, as in 1,4 (default: the batch of the export).
        record: Write what was found into machines/NAME.json of the directory.
        name: NAME of the record (default: the name of this machine).
        json_: Print JSON instead of a table.
        debug: Show the trace of an error.
    """
    del debug
    check_record(name, record=record)
    from exporter.report import strict_json
    from exporter.target.bench import bench as time_directory

    with progress(shown=not json_) as on_progress:
        found = time_directory(directory, batches=batch, seconds=seconds, on_progress=on_progress)
    show(strict_json(found.to_dict()) if json_ else _table(found))
    if record:
        write_record(directory, name, found.environment, found.latency)
    return 0


def _table(found: Benched) -> RenderableType:
    from rich.console import Group
    from rich.constrain import Constrain

    from exporter.report import busy_line, ms, who
    from exporter.report.table import WIDTH, figures, plain_line, table, texts

    measured = figures("Batch", "p50 ms", "95 % of p50", "p90 ms", "p99 ms", "Clips/s", "Runs")
    runtime, timing = texts("Runtime", "Timed")
    runtime.min_width = max((len(row.runtime) for row in found.latency), default=None)
    made = table(runtime, timing, *measured, gap=1)
    for row in found.latency:
        between = f"{ms(row.p50_low_ms)} to {ms(row.p50_high_ms)}"
        times = map(ms, (row.p90_ms, row.p99_ms, row.clips_per_s))
        figures_of = (ms(row.p50_ms), between, *times, str(row.runs))
        made.add_row(who(row), row.timing, str(row.batch), *figures_of)
    lines = [
        f"{row.runtime} ({row.device}), batch {row.batch}: not timed: {row.reason}"
        for row in found.not_timed
    ]
    lines += busy_line(found.environment)
    return Constrain(Group(made, *map(plain_line, lines)), width=WIDTH)
