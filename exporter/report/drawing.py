"""A plot as a part of a page: painted with matplotlib, for a wide and for a narrow screen.

The same plot gives the same bytes, whatever the user has configured in matplotlib. Foreign text
never reaches matplotlib, which reads `$` as mathematics and warns of letters that its fonts lack.
A token is drawn in its place.
"""

from __future__ import annotations

import io
import logging
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from exporter.report.escape import html, one_line, without_control
from exporter.report.svg import clean, token_of, tone_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Align = Literal["left", "center", "right"]
Side = Literal["x", "y"]
WIDE, NARROW = 720, 304  # pixels; the narrow plot fills a phone of 360
MARKERS = ("o", "^", "s", "D", "v", "P")
LETTER = 7.3  # pixels; no letter of a label is wider


@dataclass(frozen=True)
class Frame:
    """Size of a plot and the margins around its axes, in pixels."""

    width: int
    height: int
    left: int = 8
    right: int = 8
    top: int = 8
    bottom: int = 26

    @property
    def narrow(self) -> bool:
        """Whether the plot is for a phone."""
        return self.width < WIDE

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height of the axes."""
        return self.width - self.left - self.right, self.height - self.top - self.bottom

    @property
    def rectangle(self) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of the axes, as shares of the plot."""
        (across, up), (width, height) = self.inner, (self.width, self.height)
        return self.left / width, self.bottom / height, across / width, up / height


@dataclass(frozen=True)
class Canvas:
    """What a plot is painted on; `axes` are those of matplotlib."""

    axes: Axes
    frame: Frame
    words: list[tuple[str, str]] = field(default_factory=list)

    def write(
        self,
        place: tuple[float, float],
        text: object,
        *,
        tone: str = "ink",
        align: Align = "left",
        bold: bool = False,
        room: float = math.inf,
        lead: str = "",
    ) -> None:
        """Write a lead and foreign text at x pixels from the left of the axes and y in data.

        Text that is wider than `room`, in pixels, loses its beginning; a title shows all of it
        when the pointer is over it.
        """
        whole = without_control(one_line(text))
        shown = _shorten(whole, room - _width(lead))
        self.words.append((lead + shown, lead + whole))
        x, y = place
        self.axes.text(
            x / self.frame.inner[0],
            y,
            token_of(len(self.words) - 1),
            transform=self.axes.get_yaxis_transform(),
            color=tone_of(tone),
            ha=align,
            va="baseline",
            weight="bold" if bold else "normal",
        )

    def log_scale(self, side: Side, values: Iterable[float | None], room: float = 1.6) -> float:
        """Make an axis logarithmic, from the least positive value / room to the largest * room.

        Gives the lower limit, where what is not positive may be drawn.
        """
        found = [value for value in values if value and 0 < value < math.inf]
        low, high = (min(found) / room, max(found) * room) if found else (1e-8, 1.0)
        self.axes.set(**{f"{side}scale": "log", f"{side}lim": (low, high)})
        self.axes.minorticks_off()
        return low

    def round_ticks(
        self,
        side: Side,
        most: int,
        write: Callable[[float], str],
        *,
        within: tuple[float, float] = (-math.inf, math.inf),
        unit: str = "",
    ) -> None:
        """Mark at most so many round values of an axis whose limits are set; the last has the unit.

        `within` are the values that there can be, where the axis is longer than that.
        """
        axis = self.axes.xaxis if side == "x" else self.axes.yaxis
        low, high = (float(end) for end in axis.get_view_interval())
        ends = max(low, within[0]), min(high, within[1])
        ticks = (_log_ticks if axis.get_scale() == "log" else _linear_ticks)(*ends, most)
        said = [write(tick) for tick in ticks]
        said[-1] += f" {unit}" if unit else ""
        if side == "x":
            self.x_ticks(ticks, said)
        else:
            self.axes.set_yticks(ticks, said)

    def x_ticks(self, ticks: Sequence[float], said: Sequence[str], align: Align = "center") -> None:
        """Mark places below the axes, whose limits are set.

        Words at an edge are moved inwards; words that would overlap those before are left out.
        """
        self.axes.set_xticks(ticks, said)
        written = -math.inf
        for label, tick in zip(self.axes.get_xticklabels(), ticks, strict=True):
            width = LETTER * len(label.get_text())
            place = self.axes.transData.transform((tick, self.axes.get_ylim()[0]))[0]
            start = place - {"left": 0.0, "center": 0.5, "right": 1.0}[align] * width
            side: Align = align
            if start < 2:
                start, side = place, "left"
            elif start + width > self.frame.width - 2:
                start, side = place - width, "right"
            if start < written + LETTER:
                label.set_visible(False)
            else:
                written = start + width
                label.set_horizontalalignment(side)


def scientific(tick: float) -> str:
    """Write a value of an axis as 1e-07."""
    digits, power = f"{tick:.2e}".split("e")
    return f"{float(digits):g}e{power}"


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten where there are three; else 1, 2 and 5 times them, or 1 and 3 times."""
    from matplotlib.ticker import LogLocator

    for factors, least in (((1,), 3), ((1, 2, 5), 2), ((1, 3), 2), ((1,), 2)):
        locator = LogLocator(subs=factors, numticks=most)
        ticks = _inside(locator.tick_values(low, high), low, high)
        if least <= len(ticks) <= most:
            return ticks
    return _linear_ticks(low, high, most)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    from matplotlib.ticker import MaxNLocator

    def with_steps(count: int) -> list[float]:
        locator = MaxNLocator(count, steps=(1, 2, 5, 10))
        return _inside(locator.tick_values(low, high), low, high)

    ticks = with_steps(most)  # one more tick where both limits are round
    return ticks if len(ticks) <= most else with_steps(most - 1)


def _inside(ticks: Iterable[float], low: float, high: float) -> list[float]:
    """The ticks between two values, without the noise of their computation."""
    rounded = (float(f"{tick:.12g}") for tick in ticks)
    ends = (low, high)
    return [t for t in rounded if low <= t <= high or any(math.isclose(t, end) for end in ends)]


def _shorten(text: str, room: float) -> str:
    """Keep the end of a text: the end of a path says most."""
    if _width(text) <= room:
        return text
    text = text[-int(room / LETTER) - 1 :]
    while text and _width(text) + LETTER > room:
        text = text[1:]
    return f"…{text}"


def _width(text: str) -> float:
    """The largest width of a text in pixels; wide letters, as Chinese ones, count twice."""
    return LETTER * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def plot(
    name: str, alternative: str, paint: Callable[[Canvas], None], frames: Sequence[Frame]
) -> Markup:
    """Draw a plot once for each frame.

    Args:
        name: A name that no other plot of the page has.
        alternative: What the plot shows, in words.
        paint: Paints a canvas.
        frames: A wide and a narrow one, or one for all screens.
    """
    told = Markup(html(alternative))
    drawn = Markup("").join(
        _inline(paint, frame, f"{name}-{index}", told, _shown(frame, len(frames)))
        for index, frame in enumerate(frames)
    )
    return Markup('<div class="plot">{}</div>').format(drawn)


def _shown(frame: Frame, count: int) -> str:
    if count == 1:
        return "panel"
    return "narrow" if frame.narrow else "wide"


def _inline(
    paint: Callable[[Canvas], None], frame: Frame, name: str, told: Markup, shown: str
) -> Markup:
    svg, words = _draw(paint, frame)
    head = Markup('<svg class="{}" role="img" aria-label="{}" viewBox="0 0 {} {}">').format(
        shown, told, frame.width, frame.height
    )
    return head + clean(svg, name, words) + Markup("</svg>\n")


def _draw(paint: Callable[[Canvas], None], frame: Frame) -> tuple[str, list[tuple[str, str]]]:
    with _quiet():
        import matplotlib as mpl
        from matplotlib.figure import Figure
    with mpl.rc_context():
        mpl.rcdefaults()  # instead of what the user has configured
        mpl.rcParams.update(_settings())
        figure = Figure(figsize=(frame.width / 72, frame.height / 72), dpi=72, facecolor="none")
        canvas = Canvas(figure.add_axes(frame.rectangle, facecolor="none"), frame)
        canvas.axes.spines[:].set_visible(False)
        canvas.axes.tick_params(which="both", length=0, labelcolor=tone_of("soft"), labelsize=12)
        canvas.axes.set_axisbelow(True)
        paint(canvas)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    return out.getvalue(), canvas.words


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep matplotlib from reporting its caches on the terminal at its first import."""
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _settings() -> dict[Any, Any]:
    ink = ("text.color", "axes.edgecolor", "xtick.color", "ytick.color", "axes.labelcolor")
    return {
        "svg.hashsalt": "tsformer",
        "svg.fonttype": "none",
        "font.size": 13,
        "grid.color": tone_of("line"),
        **dict.fromkeys(ink, tone_of("ink")),
    }
