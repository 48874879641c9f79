"""The plots of the report of one export; a table of the page has the figures of each plot too.

Most plots are rows with a name: before the marks on a wide screen, above them on a narrow one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from exporter.report.drawing import NARROW, WIDE, Canvas, Frame, plot, scientific
from exporter.report.formats import accuracy, ms, percent, sci, seconds
from exporter.report.svg import tone_of
from exporter.report.words import ladder_line, rung_mark, who
from exporter.results import Accuracy, Ladder, Latency, Parity, StageStatus

NAMES, VALUES = 276, 84  # pixels beside the axes of a wide plot
ABOVE = 24  # pixels above the marks of a row of a narrow plot
AXIS = 24
TRACK = {"color": tone_of("line"), "linewidth": 1, "zorder": 0.5}  # below all marks
FAR = 3.0  # times the median; runs beyond it are counted, not shown


@dataclass(frozen=True)
class Row:
    """Name and figure of a row; `lead` goes before the name, an alarming figure is red."""

    name: str
    value: str
    alarming: bool = False
    lead: str = ""


def _row_plot(
    name: str,
    alternative: str,
    rows: Sequence[Row],
    pitch: int,
    paint: Callable[[Canvas, Sequence[float]], None],
) -> Markup:
    """Draw rows of `pitch` pixels; `paint` gets the y of the marks of each row."""

    def painted(canvas: Canvas) -> None:
        frame = canvas.frame
        above = ABOVE if frame.narrow else 0
        step = pitch + above
        places = [index * step + above + pitch / 2 for index in range(len(rows))]
        canvas.axes.set_ylim(frame.inner[1], 0)
        canvas.axes.set_yticks([])
        canvas.axes.grid(axis="x", linewidth=1)
        across = canvas.axes.get_yaxis_transform()
        canvas.axes.hlines(places, 0, 1, transform=across, **TRACK)
        for row, place in zip(rows, places, strict=True):
            line = place - pitch / 2 - 4 if frame.narrow else place + 5
            start = 0 if frame.narrow else 14 - NAMES
            end = frame.inner[0] + (0 if frame.narrow else VALUES - 10)
            room = frame.inner[0] - 72 if frame.narrow else NAMES - 28
            canvas.write((start, line), row.name, lead=row.lead, room=room)
            tone = "fail" if row.alarming else "ink"
            canvas.write((end, line), row.value, tone=tone, align="right", bold=True)
        paint(canvas, places)

    def tall(above: int) -> int:
        return len(rows) * (pitch + above) + AXIS + 4

    wide = Frame(WIDE, tall(0), left=NAMES, right=VALUES, top=4, bottom=AXIS)
    narrow = Frame(NARROW, tall(ABOVE), left=5, right=7, top=4, bottom=AXIS)
    return plot(name, alternative, painted, (wide, narrow))


def parity_plot(name: str, row: Parity) -> Markup:
    """Error, floor and tolerance of each input."""
    items, limit = row.per_input, row.tolerance
    rows = [
        Row(
            item.name,
            sci(item.rel_l2),
            row.verdict != "ill-conditioned" and not (limit and item.rel_l2 <= limit),
            f"{number}. ",
        )
        for number, item in enumerate(items, 1)
    ]
    errors, floors = [item.rel_l2 for item in items], [item.floor_rel_l2 for item in items]

    def paint(canvas: Canvas, places: Sequence[float]) -> None:
        low = _log_x(canvas, [*errors, *floors, limit])
        if limit and row.verdict != "ill-conditioned":
            band = {"color": tone_of("allowed"), "linewidth": 0, "zorder": 0}
            canvas.axes.axvspan(low, limit, **band)
        # One line with gaps: matplotlib takes long for many. A narrow plot has its words above it.
        ends = [end for place in places for end in (place - 14, place + 14, math.nan)]
        canvas.axes.plot(
            [limit or math.nan] * len(ends), ends, color=tone_of("pass"), linewidth=2.5
        )
        _rings_and_dots(canvas, places, [max(f, low) for f in floors], errors, rows, low)

    told = (
        f"Relative error of {who(row)} for each of {len(items)} inputs on a logarithmic scale; "
        f"the worst is {sci(row.rel_l2)}, the floor {sci(row.floor_rel_l2)}, "
        f"the tolerance {sci(limit)}."
    )
    return _row_plot(name, told, rows, 28, paint)


def _rings_and_dots(
    canvas: Canvas,
    places: Sequence[float],
    floors: Sequence[float],
    errors: Sequence[float],
    rows: Sequence[Row],
    low: float,
) -> None:
    finite = [(x, y) for x, y in zip(floors, places, strict=True) if math.isfinite(x)]
    ring = {"markerfacecolor": "none", "markeredgecolor": tone_of("soft"), "markeredgewidth": 1.5}
    canvas.axes.plot(*_xy(finite), "o", markersize=12, **ring, clip_on=False, gid=".floors")
    for tone, alarming in (("bar", False), ("fail", True)):
        dots = [
            (max(x, low), y)
            for x, y, row in zip(errors, places, rows, strict=True)
            if math.isfinite(x) and row.alarming == alarming
        ]
        _dots(canvas, dots, tone, 7)


def _dots(canvas: Canvas, places: Sequence[tuple[float, float]], tone: str, size: float) -> None:
    look = {"color": tone_of(tone), "markersize": size, "markeredgewidth": 0}
    mark = ".dots over" if tone == "fail" else ".dots"
    canvas.axes.plot(*_xy(places), "o", clip_on=False, gid=mark, **look)


def _xy(places: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in places], [y for _, y in places]


def _log_x(canvas: Canvas, values: Sequence[float | None]) -> float:
    """Make the x axis logarithmic around the values, with ticks; give its lower limit."""
    low = canvas.log_scale("x", values)
    canvas.round_ticks("x", 4 if canvas.frame.narrow else 6, scientific)
    return low


def ladder_plot(name: str, ladder: Ladder) -> Markup:
    """Error of each module and of eager PyTorch there, in the order of computation."""
    rungs = ladder.rungs
    errors = [rung.rel_l2 for rung in rungs]
    floors = [rung.floor_rel_l2 for rung in rungs]

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes
        low, high = canvas.log_scale("y", [*errors, *floors]), axes.get_ylim()[1]
        axes.set_xlim(-0.5, len(rungs) - 0.5)
        canvas.round_ticks("y", 6, scientific)
        axes.grid(axis="y", linewidth=1)
        starts = _first_of_blocks([rung.path for rung in rungs])
        canvas.x_ticks(list(starts.values()), list(starts), "left")
        axes.plot([max(value, low) for value in floors], color=tone_of("soft"), linewidth=2)
        shown = [max(error, low) if math.isfinite(error) else high for error in errors]
        marks = [bool(rung_mark(ladder, rung)) for rung in rungs]
        _dots(canvas, [p for p, m in zip(enumerate(shown), marks, strict=True) if not m], "bar", 6)
        _dots(canvas, [p for p, m in zip(enumerate(shown), marks, strict=True) if m], "fail", 10)

    told = (
        "Relative error of each module in the order they compute, on a logarithmic scale. "
        f"{ladder_line(ladder)}"
    )
    margins = {"left": 52, "right": 10, "top": 10}
    frames = (Frame(WIDE, 300, **margins), Frame(NARROW, 240, **margins))
    return plot(name, told, paint, frames)


def _first_of_blocks(paths: Sequence[str]) -> dict[str, int]:
    """The place on the ladder where each block (`blocks.3`) starts; other modules have no block."""
    starts: dict[str, int] = {}
    for place, path in enumerate(paths):
        found = re.match(r"\w+\.\d+(?=\.)", path, flags=re.ASCII)
        if found:
            starts.setdefault(found[0], place)
    return starts


def latency_plot(name: str, timed: tuple[Latency, ...]) -> Markup:
    """Every run, the median, and the span from the median to p99 with p90 marked."""
    several = len({(row.runtime, row.device, row.precision) for row in timed}) < len(timed)
    rows = [
        Row(who(row) + (f", batch {row.batch}" if several else ""), f"{ms(row.p50_ms)} ms")
        for row in timed
    ]
    right = 1.04 * max(min(row.p99_ms, FAR * row.p50_ms) for row in timed) or 1.0

    def paint(canvas: Canvas, places: Sequence[float]) -> None:
        canvas.axes.set_xlim(0, right)
        _round_x(canvas, lambda tick: f"{tick:,g}", "ms")
        for row, place in zip(timed, places, strict=True):
            _latency_row(canvas, row, place, right)

    told = "Latency in milliseconds per batch. " + " ".join(
        f"{who(row)}, batch {row.batch}: median {ms(row.p50_ms)}, p90 {ms(row.p90_ms)}, "
        f"p99 {ms(row.p99_ms)}."
        for row in timed
    )
    return _row_plot(name, told, rows, 46, paint)


def _latency_row(canvas: Canvas, row: Latency, place: float, right: float) -> None:
    axes = canvas.axes
    tone = tone_of("eager" if row.runtime == "eager" else "bar")
    shown = [(number, run) for number, run in enumerate(row.samples_ms) if run <= right]
    if shown:  # from the first run at the top to the last at the bottom
        heights = [place - 8 + 26 * number / len(row.samples_ms) for number, _ in shown]
        runs = [run for _, run in shown]
        axes.plot(runs, heights, "o", ms=4, color=tone, mew=0, alpha=0.55, gid=".runs")
    ink = {"color": tone_of("ink"), "linewidth": 1.5, "solid_capstyle": "butt"}
    axes.plot([row.p50_ms, row.p99_ms], [place - 14] * 2, **ink)
    for value, half in ((row.p90_ms, 3), (row.p99_ms, 4)):
        axes.plot([value] * 2, [place - 14 - half, place - 14 + half], **ink)
    median = {"color": tone, "linewidth": 3.5, "solid_capstyle": "butt", "gid": ".median"}
    axes.plot([row.p50_ms] * 2, [place - 20, place + 20], **median)
    beyond = len(row.samples_ms) - len(shown)
    if beyond:
        place_of_count = canvas.frame.inner[0] - 2, place + 18
        canvas.write(place_of_count, f"+ {beyond} slower", tone="soft", align="right")


def stages_plot(name: str, stages: tuple[StageStatus, ...]) -> Markup:
    """The time of each stage."""
    rows = [Row(stage.name, f"{seconds(stage.seconds)} s") for stage in stages]
    right = 1.04 * max(stage.seconds for stage in stages) or 1.0

    def paint(canvas: Canvas, places: Sequence[float]) -> None:
        canvas.axes.set_xlim(0, right)
        _round_x(canvas, lambda tick: f"{tick:,g}", "s")
        taken = [stage.seconds for stage in stages]
        canvas.axes.barh(list(places), taken, height=12, color=tone_of("bar"))

    told = "Seconds of each stage: " + ", ".join(f"{row.name} {row.value}" for row in rows) + "."
    return _row_plot(name, told, rows, 24, paint)


def accuracy_plot(name: str, judged: tuple[Accuracy, ...]) -> Markup:
    """The accuracy of each runtime, with its interval if it has one."""
    ends = [row.accuracy if end is None else end for row in judged for end in (row.low, row.high)]
    intervals = list(zip(ends[::2], ends[1::2], strict=True))
    share = judged[0].is_share
    rows = [Row(who(row), accuracy(row.accuracy, share=share)) for row in judged]
    low = min(ends)
    left = max(0.0 if share else -math.inf, low - 0.3 * (1 - low) - 0.01)

    def paint(canvas: Canvas, places: Sequence[float]) -> None:
        canvas.axes.set_xlim(left, 1 + 0.02 * (1 - left))
        scale, unit = (100, "%") if share else (1, "")
        _round_x(canvas, lambda tick: f"{scale * tick:.4g}", unit)
        for row, interval, place in zip(judged, intervals, places, strict=True):
            tone = "eager" if row.runtime == "eager" else "bar"
            line = {"color": tone_of(tone), "linewidth": 2}
            canvas.axes.plot(interval, [place] * 2, **line)
            for end in interval:
                canvas.axes.plot([end] * 2, [place - 5, place + 5], **line)
            _dots(canvas, [(row.accuracy, place)], tone, 9)

    told = f"{judged[0].measure}, with its 95 % interval if it has one. " + " ".join(
        f"{who(row)}: {written.value}"
        + ("." if row.low is None else f", {percent(row.low)} to {percent(row.high)}.")
        for row, written in zip(judged, rows, strict=True)
    )
    return _row_plot(name, told, rows, 28, paint)


def _round_x(canvas: Canvas, write: Callable[[float], str], unit: str) -> None:
    canvas.round_ticks("x", 4 if canvas.frame.narrow else 7, write, unit=unit)
