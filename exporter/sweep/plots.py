"""The plots of a sweep: latency over resolution, and quality against latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from exporter.report.drawing import MARKERS, NARROW, WIDE, Canvas, Frame, plot, scientific
from exporter.report.formats import ms, percent, sci
from exporter.report.svg import SERIES, tone_of
from exporter.sweep.results import CellResult, Criterion, Point

DASHES = ("", "8 4", "2 4", "10 4 2 4")  # values of SVG's stroke-dasharray, in pixels
# Possible offsets in pixels from a point to its number, the best offset first.
AROUND = ((0, 15), (-15, 0), (0, -16), (15, 0), (-13, 13), (13, -13), (0, 30), (-28, 6), (0, -31))
CLEARANCE = 13.0  # distance in pixels from a number to other points and numbers
MARGINS = {"left": 58, "right": 14, "top": 12, "bottom": 44}


@dataclass(frozen=True)
class Panel:
    """Latency over resolution, for one value of each other axis."""

    title: str
    lines: Mapping[tuple[str, str], Sequence[tuple[float, float, str]]]  # pixels, ms, resolution


def find_panels(cells: Sequence[CellResult]) -> list[Panel]:
    """Return one panel for each combination of the other axes.

    A panel has one line for each mechanism and runtime with at least two resolutions.
    """
    panels: dict[str, dict[tuple[str, str], list[tuple[float, float, str]]]] = {}
    for cell in (cell for cell in cells if cell.pixels):
        others = (f"{k} {v}" for k, v in cell.words.items() if k not in ("attn", "res"))
        lines = panels.setdefault(", ".join(others), {})
        for timed in (*cell.made, *(t for t in cell.timed if t.runtime == "eager")):
            place = (cell.pixels or 0.0, timed.p50_ms, cell.res)
            lines.setdefault((cell.attn, timed.where), []).append(place)
    sorted_panels = (
        Panel(title, {who: sorted(places) for who, places in lines.items() if len(places) > 1})
        for title, lines in panels.items()
    )
    return [panel for panel in sorted_panels if panel.lines]


def resolution_plot(
    name: str, panel: Panel, panels: Sequence[Panel], mechanisms: Sequence[str]
) -> Markup:
    """Plot the median latency over the resolution, on the same logarithmic axes in all panels."""
    places = [place for one in panels for line in one.lines.values() for place in line]
    wheres = runtimes(panels)

    def paint(canvas: Canvas) -> None:
        shown = {place: text for place, _, text in sorted(places)}
        canvas.log_scale("x", shown, room=1.2)
        _log_y(canvas, [y for _, y, _ in places])
        canvas.x_ticks(list(shown), list(shown.values()))
        _titles(canvas, "resolution, pixels a side", "ms per batch")
        for (attn, where), line in panel.lines.items():
            tone, marker = look(mechanisms, attn)
            xs, ys = [x for x, _, _ in line], [y for _, y, _ in line]
            style = {"color": tone_of(tone), "marker": marker, "markersize": 7, "linewidth": 2}
            (drawn,) = canvas.axes.plot(xs, ys, markeredgewidth=0, clip_on=False, **style)
            dashes = [float(pixels) / 2 for pixels in dash(wheres, where).split()]
            drawn.set_linestyle((0, dashes) if dashes else "-")  # in units of the line width

    told = f"Median latency in milliseconds over resolution, {panel.title}. " + " ".join(
        f"{attn}, {where}: " + ", ".join(f"{ms(y)} at {text}" for _, y, text in line) + "."
        for (attn, where), line in panel.lines.items()
    )
    return plot(name, told, paint, _frames(single=len(panels) == 1))


def runtimes(panels: Sequence[Panel]) -> list[str]:
    """Return all runtimes of the panels, with eager PyTorch last."""
    found = dict.fromkeys(where for panel in panels for _, where in panel.lines)
    return sorted(found, key=lambda where: where.startswith("eager"))


def dash(wheres: Sequence[str], where: str) -> str:
    """Return the dashes of a runtime's lines, as a value of SVG's stroke-dasharray."""
    return DASHES[wheres.index(where) % len(DASHES)]


def look(mechanisms: Sequence[str], attn: str) -> tuple[str, str]:
    """Return colour and marker of a mechanism. The marker alone identifies it too."""
    index = mechanisms.index(attn) % len(SERIES)
    return SERIES[index], MARKERS[index]


def trade_plot(
    name: str,
    points: Sequence[Point],
    front: Sequence[Point],
    criterion: Criterion,
    mechanisms: Sequence[str],
) -> Markup:
    """Plot quality against latency. A line joins the points of the front; numbers label them."""
    low = [p.quality if p.timed.low is None else p.timed.low for p in points]
    high = [p.quality if p.timed.high is None else p.timed.high for p in points]

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes
        _log_x(canvas, [point.timed.p50_ms for point in points])
        if criterion == "accuracy":
            _share_y(canvas, min(low), max(high))
        else:
            _log_y(canvas, low)
        _titles(canvas, "median latency, ms per batch", criterion)
        steps = {"drawstyle": "steps-post", "linewidth": 2, "color": tone_of("soft")}
        xs, ys = [p.timed.p50_ms for p in front], [p.quality for p in front]
        axes.plot(xs, ys, zorder=1, gid=".front", **steps)
        for point in points:
            _point(canvas, point, look(mechanisms, point.cell.attn), criterion)
        _number(canvas, points, front)

    told = f"{criterion.capitalize()} against median latency of {len(points)} measured cells. " + (
        "Best trade-offs: "
        + "; ".join(f"{number}. {trade(point, criterion)}" for number, point in enumerate(front, 1))
        + "."
        if front
        else "None is proven."
    )
    return plot(name, told, paint, _frames(single=True))


def trade(point: Point, criterion: Criterion) -> str:
    """Return a point as text: its cell, runtime, latency and quality."""
    quality = percent(point.quality) if criterion == "accuracy" else sci(point.quality)
    return f"{point.cell.name}, {point.timed.where}: {ms(point.timed.p50_ms)} ms, {quality}"


def _point(canvas: Canvas, point: Point, look: tuple[str, str], criterion: Criterion) -> None:
    colour, x = tone_of(look[0]), point.timed.p50_ms
    if criterion == "accuracy" and point.timed.low is not None and point.timed.high is not None:
        ends = [point.timed.low, point.timed.high]
        canvas.axes.plot([x, x], ends, color=colour, linewidth=1.2, alpha=0.6)
    face = colour if point.proven else tone_of("sheet")
    style = {"markerfacecolor": face, "markeredgecolor": colour, "markeredgewidth": 1.5}
    mark = ".point" if point.proven else ".point unproven"
    canvas.axes.plot([x], [point.quality], look[1], markersize=9, clip_on=False, gid=mark, **style)


def _number(canvas: Canvas, points: Sequence[Point], front: Sequence[Point]) -> None:
    """Write each number of the front beside its point, away from other points and numbers."""

    def place(point: Point) -> tuple[float, float]:
        x, y = canvas.axes.transData.transform((point.timed.p50_ms, point.quality))
        return float(x), float(y)

    others, taken = {id(point): place(point) for point in points}, []
    for number, point in enumerate(front, 1):
        x, y = others[id(point)]
        avoided = [*taken, *(at for other, at in others.items() if other != id(point))]
        spots = [(x + dx, y + dy) for dx, dy in AROUND]
        spot = max(
            spots, key=lambda spot: min([CLEARANCE, *(math.dist(spot, at) for at in avoided)])
        )
        taken.append(spot)
        left, up = canvas.axes.transData.inverted().transform(spot)
        middle: dict[str, Any] = {"ha": "center", "va": "center"}
        canvas.axes.text(left, up, str(number), weight="bold", color=tone_of("ink"), **middle)


def _log_x(canvas: Canvas, values: Sequence[float]) -> None:
    canvas.log_scale("x", values, room=1.3)
    canvas.round_ticks("x", 4 if canvas.frame.narrow else 7, _plain)


def _log_y(canvas: Canvas, values: Sequence[float]) -> None:
    canvas.log_scale("y", values)
    canvas.round_ticks("y", 6, _plain)


def _share_y(canvas: Canvas, low: float, high: float) -> None:
    room = 0.05 * max(high - low, 0.02)
    canvas.axes.set_ylim(low - room, high + 2 * room)
    # R2 is no share, and may be below 0.
    within = max(low - room, 0.0 if low >= 0 else -math.inf), min(high + room, 1.0)
    canvas.round_ticks("y", 6, lambda tick: f"{100 * tick:.4g} %", within=within)


def _plain(tick: float) -> str:
    return f"{tick:,g}" if tick >= 1e-3 else scientific(tick)


def _titles(canvas: Canvas, below: str, above: str) -> None:
    canvas.axes.grid(linewidth=1)
    look = {"color": tone_of("soft"), "fontsize": 12}
    canvas.axes.set_xlabel(below, **look, labelpad=6)
    canvas.axes.set_title(above, loc="left", x=0.0, y=1.0, pad=2, **look)


def _frames(*, single: bool) -> tuple[Frame, ...]:
    narrow = Frame(NARROW, 270, **(MARGINS | {"top": 24}))
    return (Frame(WIDE, 380, **(MARGINS | {"top": 24})), narrow) if single else (narrow,)
