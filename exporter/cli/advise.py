"""`tsformer advise`: recommend a cell of a sweep."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from exporter.cli.parsing import Flag, Json, ShareOrNone
from exporter.cli.terminal import show
from exporter.errors import AdviceError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exporter.sweep.advise import Advice

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _quantity(text: str, units: Mapping[str, float], expected: str) -> float:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z]+)", text.strip().lower())
    if not found or found[2] not in units or float(found[1]) == 0:
        raise ValueError(f"got {text!r}, expected {expected}")
    return float(found[1]) * units[found[2]]


def _milliseconds(_type: Any, tokens: Sequence[Any]) -> float:  # noqa: ANN401
    return 1e3 * _quantity(tokens[0].value, _SECONDS, "a time like 50ms or 0.05s")


def _memory(_type: Any, tokens: Sequence[Any]) -> float:  # noqa: ANN401
    return _quantity(tokens[0].value, _BYTES, "a size like 500MB or 1.5GiB")


def advise(
    directory: Path,
    /,
    *,
    max_latency: Annotated[float | None, Parameter(converter=_milliseconds, n_tokens=1)] = None,
    min_accuracy: ShareOrNone = None,
    max_memory: Annotated[float | None, Parameter(converter=_memory, n_tokens=1)] = None,
    runtime: str | None = None,
    machine: str | None = None,
    json_: Json = False,
    debug: Flag = False,
) -> int:
    """Recommend a cell of a sweep: print the Pareto front and the pick.

    Only proven cells count. With --min-accuracy the pick is the fastest cell
    within the limits. Otherwise it is the most accurate cell within the limits.
    If no cell meets the limits, the exit code is 5 and the message names the
    closest cell.

    Examples:
        tsformer advise build/sweep --max-latency 50ms --min-accuracy 0.95

    Args:
        directory: The directory of a sweep, or of a single export.
        max_latency: Highest median time of one run: 50ms or 0.05s.
        min_accuracy: Lowest accuracy on the labelled clips of --eval: 0.95 or 95%.
        max_memory: Highest peak memory of the measuring process, PyTorch included: 500MB or 1.5GiB.
        runtime: Count this runtime only, for example onnxruntime.
        machine: Count only what this machine recorded about a single export (bench --record).
        json_: Print JSON instead of a table.
        debug: Show the trace of an error.
    """
    del debug
    from exporter.report import strict_json
    from exporter.sweep.advise import Limits, read_rows
    from exporter.sweep.advise import advise as find

    limits = Limits(max_latency, min_accuracy, max_memory)
    advice = find(read_rows(directory, machine), limits, runtime)
    show(strict_json(advice.to_dict()) if json_ else _table(advice))
    if advice.pick is None:
        raise AdviceError(advice.reason)
    if not json_:
        show(str(directory / (advice.pick.cell.directory or "")))
    return 0


def _table(advice: Advice) -> RenderableType:
    from rich.console import Group
    from rich.constrain import Constrain

    from exporter.report import mb, ms, sci
    from exporter.report.table import WIDTH, figures, plain_line, table, texts
    from exporter.sweep.advise import named
    from exporter.sweep.grid import name_of
    from exporter.sweep.results import NO_ACCURACY

    measured = figures("p50 ms", "Accuracy", "Error", "Size", "Memory")
    made = table(*texts("On the Pareto front"), *measured)
    one_runtime = len({point.timed.runtime for point in advice.front}) == 1
    for point in advice.front:
        timed = point.timed
        name = name_of(point.cell.values) if one_runtime else named(point)
        accuracy = "-" if timed.accuracy is None else f"{timed.accuracy:.1%}"
        numbers = (ms(timed.p50_ms), accuracy, sci(timed.error), mb(timed.bytes))
        memory = mb(timed.memory_mb * 2**20)
        style = "bold green" if point == advice.pick else ""
        mark = "→ " if point == advice.pick else "  "
        made.add_row(mark + name, *numbers, memory, style=style)
    lines: list[RenderableType] = [made] if advice.front else []
    if advice.front and advice.criterion == "error":
        lines.append(plain_line(f"{NO_ACCURACY}."))
    if advice.pick:
        lines.append(plain_line(advice.reason))
    return Constrain(Group(*lines), width=WIDTH)
