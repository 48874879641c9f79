"""What matplotlib draws becomes a part of the page: its colours, its words, its names."""

import re
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from exporter.report.drawing import NARROW, WIDE, Canvas, Frame, plot
from exporter.report.svg import TONES, tone_of

FRAMES = (Frame(WIDE, 100), Frame(NARROW, 120))


def dot(canvas: Canvas) -> None:
    canvas.axes.plot([0.5], [0.5], "o", color=tone_of("bar"), gid=".dot")
    canvas.axes.set_xticks([0, 1], ["0", "1 ms"])
    canvas.axes.set_yticks([])


def trees(markup: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(markup))


def test_a_plot_is_drawn_for_each_frame():
    wide, narrow = trees(plot("a", "A dot.", dot, FRAMES))
    assert [svg.get("class") for svg in (wide, narrow)] == ["wide", "narrow"]
    assert [svg.get("viewBox") for svg in (wide, narrow)] == ["0 0 720 100", "0 0 304 120"]
    assert {svg.get("role") for svg in (wide, narrow)} == {"img"}
    assert {svg.get("aria-label") for svg in (wide, narrow)} == {"A dot."}
    (alone,) = trees(plot("a", "A dot.", dot, FRAMES[1:]))
    assert alone.get("class") == "panel"


def test_colours_are_the_page_s_and_text_is_text():
    markup = plot("a", "A dot.", dot, FRAMES)
    assert "var(--bar)" in markup
    assert not re.search(r"#[0-9a-f]{6}", markup)
    texts = [text.text for text in trees(markup)[0].iter("text")]
    assert texts == ["0", "1 ms"]
    assert "font-family" not in markup
    assert "<style" not in markup


@pytest.mark.slow
@pytest.mark.parametrize("tone", TONES)
def test_every_tone_survives(tone):
    def line(canvas: Canvas) -> None:
        canvas.axes.plot([0, 1], [0, 1], color=tone_of(tone))

    assert f"stroke: var(--{tone})" in plot("a", "A line.", line, FRAMES[:1])


def test_two_plots_of_a_page_share_no_id():
    first, second = (plot(name, "A dot.", dot, FRAMES) for name in ("a", "b"))
    ids = [re.findall(r' id="([^"]+)"', markup) for markup in (first, second)]
    assert ids[0]
    assert len(set(ids[0] + ids[1])) == len(ids[0] + ids[1])
    for markup, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"', markup)) <= set(own)


@pytest.mark.parametrize(
    "name",
    [
        "$x^2$ and $",
        "中文 🎬 नमस्ते",
        "<b>&amp;</b>",
        "@0@",
        "a\x1b[31mb",
        "two\nlines",
        "clip\udcff.mp4",
    ],
)
def test_foreign_text_is_shown_as_it_is(name):
    def paint(canvas: Canvas) -> None:
        canvas.axes.set_ylim(1, 0)
        canvas.write((0, 0.5), "first")
        canvas.write((0, 0.8), name)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as matplotlib warns of letters that it cannot draw
        (svg,) = trees(plot("a", name, paint, FRAMES[:1]).encode("utf-8", "replace").decode())
    shown = name.replace("\x1b", "\N{REPLACEMENT CHARACTER}").replace("\n", " ")
    shown = shown.encode("utf-8", "replace").decode()
    words = [text.text for text in svg.iter("text")]
    assert words[-2:] == ["first", shown]
    assert svg.get("aria-label") == shown


def test_what_does_not_fit_keeps_its_end_and_is_told_whole():
    name = "/data/" + "long/" * 20_000 + "clip.mp4"

    def paint(canvas: Canvas) -> None:
        canvas.write((0, 0.5), name, room=120)

    (svg,) = trees(plot("a", "Words.", paint, FRAMES[:1]))
    (text,) = (text for text in svg.iter("text") if text.find("title") is not None)
    assert text.text.startswith("…")
    assert text.text.endswith("clip.mp4")
    assert len(text.text) < 20
    assert text.findtext("title") == name


def test_the_user_s_own_style_changes_nothing(tmp_path):
    """The same plot is the same bytes, whatever matplotlib is told elsewhere."""
    plain = plot("a", "A dot.", dot, FRAMES)
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert plot("a", "A dot.", dot, FRAMES) == plain
        assert mpl.rcParams["font.size"] == 30
    assert dict(mpl.rcParams) == before


def test_the_module_is_imported_without_matplotlib():
    code = "import sys, exporter.report, exporter.sweep.page; print('matplotlib' in sys.modules)"
    done = [sys.executable, "-c", code]
    assert subprocess.run(done, capture_output=True, text=True, check=True).stdout == "False\n"
