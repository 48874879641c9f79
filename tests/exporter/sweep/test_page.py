"""The page of a sweep shows the best trade-offs, the failures, and links to all cells."""

import re
from copy import deepcopy
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from exporter.sweep.page import headline, verdict_of, write_sweep_report
from exporter.sweep.plots import find_panels, resolution_plot, trade_plot
from exporter.sweep.results import criterion_of, find_front, read_cells, read_points

HOSTILE = "<script>alert(1)</script> | `x` [a](http://b) \x1b[31m"


def row(attn="fastformer", res=64, precision="fp32", *, p50=10.0, accuracy=0.9, **more):
    """Return the row of an invented cell."""
    who = {"runtime": "onnxruntime", "device": "cpu", "precision": precision}
    times = {"batch": 1, "p50_ms": p50, "p99_ms": 1.2 * p50, "ratio_to_eager": 1.5}
    times |= {"peak_memory_mb": 100.0}
    eager = who | times | {"runtime": "eager", "precision": "fp32", "p50_ms": 1.5 * p50}
    verdict = more.get("verdict", "pass")
    share = accuracy or 0.0
    judged = who | {"accuracy": share, "low": share - 0.02, "high": share + 0.02}
    return {
        "cell": {"attn": attn, "res": res, "precision": precision},
        "key": "0" * 64,
        "status": "done",
        "verdict": verdict,
        "reason": "",
        "directory": f"cells/{attn}-{res}-{precision}",
        "seconds": 12.0,
        "report": {
            "spec": {"attn": attn, "res": [res, res]},
            "environment": {"cores_busy_with_others": 0.0},
            "parity": [who | {"verdict": verdict, "rel_l2": 1e-7 * p50}],
            "latency": [eager, who | times],
            "accuracy": [judged] if accuracy else [],
            "graph": {"file_bytes": 1000},
        },
        **more,
    }


def failed(reason=HOSTILE, attn="regular"):
    nothing = {"verdict": None, "directory": None, "report": None, "status": "failed"}
    return row(attn) | nothing | {"reason": reason}


PENDING = failed("") | {"status": "pending"}


def sweep_of(*rows):
    axes = {"attn": ["fastformer"], "res": [64], "precision": ["fp32"]}
    environment = {"tsformer": "0.1.0", "date": "2026-11-21", "cpu": "A processor", "gpu": None}
    return {
        "sweep_version": 1,
        "axes": axes,
        "base": {"depth": 2, "video": [HOSTILE]},
        "environment": environment,
        "rows": list(rows),
    }


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def written(sweep, folder, kind="html"):
    write_sweep_report(sweep, folder)
    return (folder / f"report.{kind}").read_text(encoding="utf-8")


def parsed(text):
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    return tags


@pytest.mark.parametrize(
    ("figures", "numbers"),
    [
        ([(10, 0.9), (20, 0.8), (30, 0.95)], [0, 2]),  # slower and worse is dominated
        ([(10, 0.9), (10, 0.95), (10, 0.9)], [1]),  # equal latency: only the best
        ([(10, 0.9), (9, 0.8), (10, 0.9), (10, 0.89)], [1, 0, 2]),  # equal in both: all of them
        ([(10, 0.9), (12, 0.9)], [0]),  # equal accuracy: only the fastest
        ([(30, 0.9), (20, 0.8), (10, 0.7)], [2, 1, 0]),
        ([], []),
    ],
)
def test_the_front_has_exactly_the_points_that_are_not_dominated(figures, numbers):
    rows = [row(str(i), p50=ms, accuracy=share) for i, (ms, share) in enumerate(figures)]
    front = find_front(read_points(read_cells(rows), "accuracy"), "accuracy")
    assert [int(point.cell.attn) for point in front] == numbers


def test_an_unproven_cell_is_not_on_the_front():
    bad = row(p50=1.0, accuracy=1.0, verdict="fail")
    engine_failed = row(p50=2.0, accuracy=1.0)
    engine_failed["verdict"] = "fail"  # the whole cell failed, although its graph passed
    cells = read_cells([bad, engine_failed, row(p50=3.0)])
    points = read_points(cells, "accuracy")
    assert [point.proven for point in points] == [False, False, True]
    assert [point.cell for point in find_front(points, "accuracy")] == [cells[2]]


def test_without_accuracy_cells_are_compared_by_their_error(tmp_path):
    rows = [row(p50=10, accuracy=None), row("performer", p50=20, accuracy=None)]
    cells = read_cells(rows)
    assert criterion_of(timed for cell in cells for timed in cell.made) == "error"
    assert [p.cell.attn for p in find_front(read_points(cells, "error"), "error")] == ["fastformer"]
    assert "No accuracy was measured" in written(sweep_of(*rows), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "verdict", "words"),
    [
        ([row()], "pass", "1 of 1 cells proven."),
        ([row(), failed()], "fail", "1 of 2 cells proven, 1 failed."),
        ([row(), row(verdict="fail")], "fail", "1 of 2 cells proven, 1 not proven."),
        ([row(verdict="ill-conditioned")], "ill-conditioned", "0 of 1 cells proven, 1 not proven."),
        (
            [row(), failed() | {"status": "pending"}],
            "not-run",
            "1 of 2 cells proven, 1 still to do.",
        ),
        ([], "not-run", "0 of 0 cells proven."),
    ],
)
def test_verdict_and_headline_follow_from_the_outcomes_of_the_cells(rows, verdict, words, tmp_path):
    cells = read_cells(rows)
    assert verdict_of(cells) == verdict
    assert headline(cells) == words
    for kind in ("html", "md"):
        assert words in written(sweep_of(*rows), tmp_path, kind)


def test_latency_over_resolution_has_a_panel_for_each_value_of_the_other_axes():
    rows = [
        row(attn, res, precision, p50=res / 10)
        for attn in ("fastformer", "regular")
        for res in (128, 64, 96)
        for precision in ("fp32", "int8")
    ]
    panels = find_panels(read_cells(rows))
    assert [panel.title for panel in panels] == ["precision fp32", "precision int8"]
    lines = panels[0].lines
    assert set(lines) == {
        (attn, where)
        for attn in ("fastformer", "regular")
        for where in ("eager (cpu)", "onnxruntime (cpu)")
    }
    assert [place for place, _, _ in lines["regular", "eager (cpu)"]] == [64, 96, 128]
    drawn = resolution_plot("r", panels[0], panels, ["fastformer", "regular"])
    (svg,) = ElementTree.fromstring(drawn)
    assert "fastformer, onnxruntime (cpu): 6.40 at 64, 9.60 at 96, 12.8 at 128." in svg.get(
        "aria-label"
    )
    assert {"64", "96", "128"} <= {text.text for text in svg.iter("text")}


def test_a_single_resolution_makes_no_plot_over_resolution(tmp_path):
    assert find_panels(read_cells([row(), row("regular")])) == []
    assert "Latency over resolution" not in written(sweep_of(row()), tmp_path)


def test_the_front_is_numbered_in_the_plot_and_described_in_its_label():
    cells = read_cells([row(p50=10), row("regular", p50=30, accuracy=0.95)])
    points = read_points(cells, "accuracy")
    front = find_front(points, "accuracy")
    plot = trade_plot("t", points, front, "accuracy", ["fastformer", "regular"])
    svg = ElementTree.fromstring(plot)[0]
    said = svg.get("aria-label")
    assert "1. fastformer 64 fp32, onnxruntime (cpu): 10.0 ms, 90 %" in said
    assert "2. regular 64 fp32, onnxruntime (cpu): 30.0 ms, 95 %" in said
    assert [text.text for text in svg.iter("text")][-3:] == ["1", "2", "accuracy"]
    assert len([g for g in svg.iter("g") if g.get("class") == "point"]) == 2


def test_r2_below_0_has_ticks():
    cells = read_cells([row(p50=10, accuracy=-0.9), row("regular", p50=30, accuracy=-0.2)])
    points = read_points(cells, "accuracy")
    plot = trade_plot("t", points, points, "accuracy", ["fastformer", "regular"])
    assert "-40 %" in [text.text for text in ElementTree.fromstring(plot)[0].iter("text")]


def test_a_failed_cell_is_a_row_with_its_reason(tmp_path):
    text = written(sweep_of(row(), failed("engine: no memory")), tmp_path)
    assert text.count("engine: no memory") == 2
    assert "| failed |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "engine: no memory" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_foreign_text_is_escaped_in_html_and_markdown(tmp_path):
    hostile = row(directory='cells/"><b>')
    hostile["cell"] = {"attn": HOSTILE, "res": HOSTILE, "precision": "fp32"}
    away = row(directory="javascript:alert(1)//")
    text = written(sweep_of(hostile, away, failed()), tmp_path)
    tags = parsed(text)
    assert [tag for tag, _ in tags.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attrs in tags.tags for name in attrs)
    assert "\x1b" not in text
    links = [attrs["href"] for tag, attrs in tags.tags if tag == "a"]
    assert {link for link in links if ":" in link} == set()
    assert "cells/%22%3E%3Cb%3E/report.html" in links
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<" not in re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", markdown)


@pytest.mark.slow
def test_markdown_tables_are_valid_and_short_enough_for_a_pull_request(tmp_path):
    text = written(
        sweep_of(*(row(res=res, p50=res) for res in range(16, 1616, 16))), tmp_path, "md"
    )
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        rows = table.strip().split("\n")
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1
        assert re.fullmatch(r"\|(-+:?\|)+", rows[1])
    assert "40 more cells are in report.html" in text
    assert len(text) < 10_000
    assert "\n\n\n" not in text


def test_the_same_sweep_gives_the_same_bytes(tmp_path):
    sweep = sweep_of(row(), row("regular", res=96), failed())
    first = written(deepcopy(sweep), tmp_path)
    assert written(sweep, tmp_path) == first


def test_a_sweep_without_a_finished_cell_has_a_page(tmp_path):
    for rows in ([], [failed()], [PENDING]):
        assert "0 of" in "".join(parsed(written(sweep_of(*rows), tmp_path)).text)


@pytest.mark.slow
def test_a_real_sweep_gives_all_cells_and_plots(real_sweep, tmp_path):
    cells = read_cells(real_sweep["rows"])
    done = [cell for cell in cells if cell.status == "done"]
    assert len(done) == 5
    assert all(cell.fastest.runtime == "onnxruntime" for cell in done)
    assert {cell.res for cell in done} == {"32 x 48", "64 x 80"}
    (panel,) = find_panels(cells)
    assert set(panel.lines) == {
        (attn, where)
        for attn in ("fastformer", "regular")
        for where in ("eager (cpu)", "onnxruntime (cpu)")
    }
    text = written(real_sweep, tmp_path)
    plots = [attrs for tag, attrs in parsed(text).tags if tag == "svg" and attrs.get("role")]
    assert len(plots) == 4  # two plots, each for a wide and for a narrow screen
    assert len(text) < 3e6
