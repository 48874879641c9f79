"""A plot as a part of a page: drawn by matplotlib, then made inline SVG of the page's own.

The same plot gives the same bytes. It is drawn in placeholder colours that become the page's CSS
variables, so that one drawing serves light and dark; text stays text. Foreign text never reaches
matplotlib, which takes `$` for mathematics and warns of letters that its fonts lack: a token
stands for it. Each plot is drawn for a wide and for a narrow screen, and the page shows one.
"""

from __future__ import annotations

import io
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from markupsafe import Markup, escape

from exporter.report.escape import one_line, without_control

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Align = Literal["left", "center", "right"]
WIDE, NARROW = 720, 304  # pixels; the narrow one fills a phone of 360
SERIES = ("series-1", "series-2", "series-3", "series-4", "series-5", "series-6")
MARKERS = ("o", "^", "s", "D", "v", "P")
TONES = ("ink", "soft", "line", "sheet", "bar", "eager", "allowed", "pass", "fail", *SERIES)
LETTER = 7.3  # pixels that a letter of a label takes at most
_XLINK = "{http://www.w3.org/1999/xlink}href"
_PLACEHOLDER = re.compile(r"#0000([0-9a-f]{2})\b")
_REFERENCE = re.compile(r"(url\(#|^#)([\w.-]+)")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_TOKEN = re.compile(r"@(\d+)@")


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
        """Whether it is for a phone."""
        return self.width < WIDE

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height of the axes."""
        return self.width - self.left - self.right, self.height - self.top - self.bottom


@dataclass(frozen=True)
class Canvas:
    """What a plot is painted on; `axes` is matplotlib's own."""

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
        """Write a lead and any text at x pixels from the left of the axes and y in data.

        Text that does not fit the room, in pixels, loses its beginning and is shown whole on
        hovering.
        """
        whole = without_control(one_line(text))
        shown = _shorten(whole, room - _width(lead))
        self.words.append((lead + shown, lead + whole))
        x, y = place
        self.axes.text(
            x / self.frame.inner[0],
            y,
            f"@{len(self.words) - 1}@",
            transform=self.axes.get_yaxis_transform(),
            color=tone_of(tone),
            ha=align,
            va="baseline",
            weight="bold" if bold else "normal",
        )

    def x_ticks(self, ticks: Sequence[float], said: Sequence[str], align: Align = "center") -> None:
        """Mark places below the axes, whose limits are set; words that have no room are left out.

        Those at an edge are moved inwards.
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


def _shorten(text: str, room: float) -> str:
    """Keep the end of a text, which tells most of a path."""
    if _width(text) <= room:
        return text
    while text and _width(text) + LETTER > room:
        text = text[1:]
    return f"…{text}"


def _width(text: str) -> float:
    """Pixels that a text takes at most; Chinese letters and their like take two places."""
    return LETTER * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def tone_of(name: str) -> str:
    """Give the placeholder colour of a CSS variable of the page."""
    return f"#0000{TONES.index(name) + 1:02x}"


def plot(
    name: str, alternative: str, paint: Callable[[Canvas], None], frames: Sequence[Frame]
) -> Markup:
    """Draw a plot once for each frame.

    Args:
        name: Unlike that of any other plot of the page.
        alternative: What the plot shows, in words.
        paint: Puts everything on the axes of a canvas.
        frames: A wide and a narrow one, or one for all screens.
    """
    told = escape(without_control(one_line(alternative)))
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
    root = _clean(ElementTree.fromstring(svg), name, words)
    body = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    head = Markup('<svg class="{}" role="img" aria-label="{}" viewBox="0 0 {} {}">').format(
        shown, told, frame.width, frame.height
    )
    return head + Markup(body) + Markup("</svg>\n")  # serialised by ElementTree


def _draw(paint: Callable[[Canvas], None], frame: Frame) -> tuple[str, list[tuple[str, str]]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user has configured
        mpl.rcParams.update(_settings())
        figure = Figure(figsize=(frame.width / 72, frame.height / 72), dpi=72, facecolor="none")
        (width, height), whole = frame.inner, (frame.width, frame.height)
        canvas = Canvas(
            figure.add_axes(
                (
                    frame.left / whole[0],
                    frame.bottom / whole[1],
                    width / whole[0],
                    height / whole[1],
                ),
                facecolor="none",
            ),
            frame,
        )
        canvas.axes.spines[:].set_visible(False)
        canvas.axes.tick_params(which="both", length=0, labelcolor=tone_of("soft"), labelsize=12)
        canvas.axes.set_axisbelow(True)
        paint(canvas)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    return out.getvalue(), canvas.words


def _settings() -> dict[Any, Any]:
    ink = ("text.color", "axes.edgecolor", "xtick.color", "ytick.color", "axes.labelcolor")
    return {
        "svg.hashsalt": "tsformer",
        "svg.fonttype": "none",
        "font.size": 13,
        "grid.color": tone_of("line"),
        **dict.fromkeys(ink, tone_of("ink")),
    }


def _clean(
    root: ElementTree.Element, name: str, words: Sequence[tuple[str, str]]
) -> ElementTree.Element:
    """Give colours, names and words of the page to what matplotlib drew."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith("style"):  # it would hold for the whole page
                parent.remove(child)
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if not (element.text or "").strip():
            element.text = None
        element.attrib.update(_attributes(element.attrib, name))
        _put_words(element, words)
    used = {
        found[2]
        for element in root.iter()
        for key, value in element.attrib.items()
        if key != "id" and (found := _REFERENCE.search(value))
    }
    for element in root.iter():
        if element.attrib.get("id", "") not in used:
            given = element.attrib.pop("id", "")
            if given.startswith(f"{name}-."):
                element.attrib["class"] = given.removeprefix(f"{name}-.")
    return root


def _attributes(given: dict[str, str], name: str) -> dict[str, str]:
    """Give the attributes as a page has them; the old ones are taken away."""
    made = {}
    for key, value in list(given.items()):
        del given[key]
        if key == "style":
            value = re.sub(r"font-family:[^;]*;? ?", "", value)
            value = _PLACEHOLDER.sub(lambda found: f"var(--{TONES[int(found[1], 16) - 1]})", value)
        elif key == "id":
            value = f"{name}-{value}"
        elif key in (_XLINK, "clip-path"):
            value = _REFERENCE.sub(rf"\g<1>{name}-\g<2>", value)
        elif key in ("d", "x", "y", "transform", "points"):
            value = _LONG_NUMBER.sub(
                lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value
            )
            value = " ".join(value.split())
            value = re.sub(r"rotate\(-0 [^)]*\)", "", value)
        if value:
            made["href" if key == _XLINK else key] = value
    return made


def _put_words(element: ElementTree.Element, words: Sequence[tuple[str, str]]) -> None:
    found = _TOKEN.fullmatch(element.text or "")
    if not found:
        return
    element.text, whole = words[int(found[1])]
    if element.text != whole:
        ElementTree.SubElement(element, "title").text = whole
