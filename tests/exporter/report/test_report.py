import base64
import hashlib
import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from exporter.report import (
    engine_line,
    graph_line,
    headline,
    human,
    ms,
    notes,
    sci,
    summary_table,
    write_report,
)
from exporter.report.plots import accuracy_plot
from exporter.results import (
    Accuracy,
    InputParity,
    Latency,
    Parity,
    Report,
    StageStatus,
    overall_verdict,
)

HOSTILE = "<script>alert(1)</script> `x` | \"y\" 'z' [red]\x1b[31m {{ 7 * 7 }}.mp4"
LONG = "/data/recordings/2026/camera-north-entrance/" + "very_long_directory_name/" * 6 + "clip.mp4"
NAMES = ("normal 0", "constant frames", "large contrast", LONG, HOSTILE)
PARITY_KEYS = {
    "runtime", "device", "precision", "verdict", "rel_l2", "max_abs", "cosine", "top1_agreement",
    "floor_rel_l2", "inputs",
}  # fmt: skip
LATENCY_KEYS = {
    "runtime", "device", "precision", "batch", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms",
    "std_ms", "clips_per_s", "runs", "peak_memory_mb",
}  # fmt: skip
VOID = {"meta", "link", "br", "hr", "img", "input"}
VERDICTS = ("pass", "fail", "ill-conditioned", "not-run")


def parity_row(verdict: str, scale: float = 1.0, floor: float = 3e-7) -> Parity:
    items = tuple(
        InputParity(
            name=name,
            rel_l2=scale * 1.1e-7 * (index + 1),
            floor_rel_l2=floor / (index + 1),
            max_abs=scale * 2e-7,
            cosine=0.9999999,
            top1_equal=verdict != "fail",
            top5_overlap=1.0,
            margin=0.3,
        )
        for index, name in enumerate(NAMES)
    )
    return Parity(
        runtime="onnxruntime",
        device="cpu",
        precision="fp32",
        verdict=verdict,
        rel_l2=items[-1].rel_l2,
        max_abs=items[-1].max_abs,
        cosine=0.9999999,
        top1_agreement=1.0,
        top5_agreement=1.0,
        floor_rel_l2=floor,
        tolerance=4 * floor,
        batch_invariance_rel_l2=1e-8,
        inputs=len(items),
        reason="" if verdict == "pass" else f"top-1 differs on {HOSTILE}",
        per_input=items,
    )


def latency_row(runtime: str, p50: float, ratio: float | None) -> Latency:
    return Latency(
        runtime, "cpu", "fp32", 1, p50, 1.08 * p50, 1.1 * p50, 1.21 * p50, 1.02 * p50, 0.03 * p50,
        1e3 / p50, 50, 812.4, 10, 2, True, ratio,
    )  # fmt: skip


NOT_RUN = Parity("tensorrt_rtx", "cuda", "fp32", "not-run", reason="no GPU on this machine")
ROWS = {
    "pass": parity_row("pass"),
    "fail": parity_row("fail", scale=3e4),
    "ill-conditioned": parity_row("ill-conditioned", scale=9e6, floor=0.98),
}


def sample(verdict: str) -> Report:
    return Report(
        spec={
            "attn": "fastformer", "scheme": "divided", "res": (512, 512), "frames": 5, "batch": 1,
            "precision": "fp32", "semantics": "paper", "checkpoint": None, "opset": 20,
            "video": [LONG, HOSTILE], "config": {}, "allow_ill_conditioned": False,
            "dynamic_batch": {"min": 1, "opt": 4, "max": 16},
        },
        environment={
            "date": "2026-11-21", "tsformer": "0.1.0", "python": "3.11.2",
            "platform": "Linux-6.1 x86_64", "cpu": "A 2-core processor @ 2.60GHz", "cores": 2,
            "memory_gb": 23.5, "gpu": None, "torch": "2.13.0", "onnx": "1.23.2",
            "onnxruntime": "1.31.1", "providers": ["CPUExecutionProvider"],
            "tensorrt": {"tensorrt_rtx": "1.7.1.116", "tensorrt": None},
        },
        stages=(
            StageStatus("load", "done", 0.41, "fresh weights from seed 0"),
            StageStatus("onnx", "done", 21.3, "checked, loaded in ONNX Runtime"),
            StageStatus("engine", "done", 4.62, HOSTILE),
            StageStatus("parity", "failed", 9.0, "x | y"),
        ),
        parity=((ROWS[verdict],) if verdict in ROWS else ()) + (NOT_RUN,),
        latency=(latency_row("eager", 1110.0, None), latency_row("onnxruntime", 842.3, 1.318)),
        engine={
            "flavour": "tensorrt_rtx", "version": "1.7.1.116", "bytes": 27_412_345,
            "sha256": "ab" * 32, "targets": ["sm86", "sm89"], "seconds": 4.62,
            "status": "built, not executed", "reason": "no GPU on this machine",
        },
        graph={
            "nodes": 412, "ops": {"MatMul": 96, "Add": 120, "Softmax": 24}, "parameters": 2_764_802,
            "file_bytes": 11_234_567, "opset": 20, "sha256": "cd" * 32, "peak_memory_mb": 1834.2,
            "inputs": [{"name": "video", "dtype": "float32", "shape": [1, 5, 3, 512, 512]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 2]}],
            "inputs_used": [{"name": HOSTILE, "note": "5 of 300 frames"}, "normal 0"],
        },
    )  # fmt: skip


EMPTY = Report(spec={}, environment={}, stages=(), parity=(), latency=())


def written(report: Report, directory: Path, suffix: str) -> str:
    write_report(report, directory)
    return (directory / f"report.{suffix}").read_text(encoding="utf-8")


def refuse_constant(token: str) -> None:
    raise AssertionError(f"{token} is no JSON")


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


@pytest.fixture(params=VERDICTS)
def verdict(request: pytest.FixtureRequest) -> str:
    return request.param


def test_overall_verdict_is_the_worst_of_what_was_run():
    fail, ill, good = ROWS["fail"], ROWS["ill-conditioned"], ROWS["pass"]
    assert overall_verdict([good, ill, fail, NOT_RUN]) == "fail"
    assert overall_verdict([good, ill, NOT_RUN]) == "ill-conditioned"
    assert overall_verdict([NOT_RUN, good]) == "pass"
    assert overall_verdict([NOT_RUN]) == "not-run"
    assert overall_verdict([]) == "not-run"


def test_eager_alone_proves_no_export():
    eager = replace(ROWS["pass"], runtime="eager")
    assert overall_verdict([eager, NOT_RUN]) == "not-run"
    assert overall_verdict([replace(eager, verdict="ill-conditioned")]) == "ill-conditioned"
    both = replace(sample("pass"), parity=(eager, ROWS["pass"]))
    assert headline(both).startswith("Proven in onnxruntime (cpu, fp32): ")


def test_json_has_the_keys_of_the_contract(verdict, tmp_path):
    data = json.loads(written(sample(verdict), tmp_path, "json"))
    assert {"spec", "environment", "stages", "parity", "latency", "engine", "graph"} <= set(data)
    assert all({"name", "status", "seconds", "detail"} <= set(stage) for stage in data["stages"])
    assert all(set(row) >= PARITY_KEYS for row in data["parity"])
    assert all(set(row) >= LATENCY_KEYS for row in data["latency"])
    assert data["parity"][0]["inputs"] == (0 if verdict == "not-run" else len(NAMES))
    if verdict != "not-run":
        assert data["parity"][0]["per_input"][-1]["name"] == HOSTILE


def test_json_is_strict_where_numbers_are_none(tmp_path):
    broken = replace(ROWS["fail"], rel_l2=math.nan, max_abs=math.inf)
    report = replace(
        sample("fail"), parity=(broken,), graph={"x": (-math.inf, Path("a"), np.int64(3))}
    )
    text = written(report, tmp_path, "json")
    data = json.loads(text, parse_constant=refuse_constant)
    assert data["parity"][0]["rel_l2"] is None
    assert data["parity"][0]["max_abs"] is None
    assert data["graph"]["x"] == [None, "a", 3]


def test_a_list_of_numbers_is_one_line_of_json_and_a_string_stays_as_it_is(tmp_path):
    report = replace(sample("pass"), graph={"x": [1.5, 2, None], "note": "[\n  1,\n  2\n]"})
    text = written(report, tmp_path, "json")
    assert '"x": [1.5, 2, null]' in text
    assert json.loads(text)["graph"] == report.graph


def test_a_report_with_no_numbers_says_so_instead_of_breaking(tmp_path):
    items = tuple(
        replace(item, rel_l2=math.nan, floor_rel_l2=math.inf, cosine=math.nan)
        for item in ROWS["fail"].per_input
    )
    row = replace(ROWS["fail"], rel_l2=math.nan, cosine=math.nan, tolerance=None, per_input=items)
    report = replace(sample("fail"), parity=(row,))
    assert "not a number" in written(report, tmp_path, "html")
    assert "not a number" in written(report, tmp_path, "md")
    assert "not a number" in headline(report)


def marks_of(page: Page, kind: str) -> list[float]:
    """Pixels from the left of the marks of a kind, in the order they are drawn."""
    found: list[float] = []
    inside = False
    for tag, attrs in page.tags:
        if tag == "g" and "class" in attrs:
            inside = attrs["class"] == kind
        elif inside and tag == "use":
            found.append(float(attrs["x"] or "nan"))
    return found


def test_an_error_of_zero_stays_on_the_logarithmic_plot(tmp_path):
    items = tuple(replace(item, rel_l2=0.0) for item in ROWS["pass"].per_input)
    row = replace(ROWS["pass"], rel_l2=0.0, per_input=items)
    page = parsed(written(replace(sample("pass"), parity=(row,)), tmp_path, "html"))
    dots = marks_of(page, "dots")
    assert len(dots) == 2 * len(items)  # for a wide screen, and for a phone
    assert len(set(dots)) == 2
    assert min(dots) >= 0


def test_the_parity_plot_places_errors_and_floors_by_their_size(tmp_path):
    page = parsed(written(sample("pass"), tmp_path, "html"))
    wide, _ = (marks_of(page, "dots")[:5], marks_of(page, "dots")[5:])
    assert wide == sorted(wide), "the errors of the sample grow"
    floors = marks_of(page, "floors")[:5]
    assert floors == sorted(floors, reverse=True), "its floors shrink"
    step = wide[1] - wide[0]  # a factor of 2
    assert wide[3] - wide[1] == pytest.approx(step, abs=0.05)
    assert not marks_of(page, "dots over")
    failed = parsed(written(sample("fail"), tmp_path, "html"))
    assert len(marks_of(failed, "dots over")) == 10


def test_undecodable_file_names_are_written(tmp_path):
    item = replace(ROWS["pass"].per_input[0], name="clip\udcff.mp4")
    row = replace(ROWS["pass"], per_input=(item,))
    write_report(replace(sample("pass"), parity=(row,)), tmp_path)
    for suffix in ("json", "md", "html"):
        assert "udcff.mp4" in (tmp_path / f"report.{suffix}").read_text(encoding="utf-8")


def test_an_empty_report_renders_everywhere(tmp_path):
    page = parsed(written(EMPTY, tmp_path, "html"))
    assert "Not run" in "".join(page.text)
    assert "nothing was compared or timed" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Not run" in printed(EMPTY)


@pytest.mark.slow
def test_markdown_tables_are_well_formed(verdict, tmp_path):
    text = written(sample(verdict), tmp_path, "md")
    blocks = [block.split("\n") for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)]
    assert len(blocks) == 2
    for rows in blocks:
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows if row}
        assert len(cells) == 1, rows
        assert re.fullmatch(r"\|(-+:?\|)+", rows[1])


@pytest.mark.slow
def test_markdown_holds_no_live_html_or_links_of_clip_names(tmp_path):
    for name, shown in (
        ("@someone `b` ![i](http://x) | y", "`` @someone `b` ![i](http://x) \\| y ``"),
        ("<b> ![i](http://x) | y", "&lt;b&gt; !\\[i\\](http://x) \\| y"),
        ("turned \u202egpj.exe \x1b[2J", "`turned \ufffdgpj.exe \ufffd[2J`"),
    ):
        row = replace(ROWS["pass"].per_input[0], name=name)
        report = replace(sample("pass"), parity=(replace(ROWS["pass"], per_input=(row,)),))
        text = written(report, tmp_path, "md")
        assert f"| {shown} |" in text


@pytest.mark.slow
def test_markdown_is_short_and_needs_no_html(verdict, tmp_path):
    text = written(sample(verdict), tmp_path, "md")
    outside_code = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    assert "<" not in outside_code
    assert len(text.splitlines()) < 40
    assert "\n\n\n" not in text


def test_markdown_names_the_worst_input(tmp_path):
    items = ROWS["pass"].per_input
    worst = replace(items[1], rel_l2=math.nan)
    for given, name in ((items[:2], items[1].name), ((items[0], worst, items[2]), worst.name)):
        row = replace(ROWS["pass"], per_input=given)
        text = written(replace(sample("pass"), parity=(row,)), tmp_path, "md")
        assert f"| `{name}` |" in text


def test_html_escapes_foreign_text(verdict, tmp_path):
    text = written(sample(verdict), tmp_path, "html")
    page = parsed(text)
    assert [tag for tag, _ in page.tags].count("script") == 1, "but the one that sorts tables"
    assert "&lt;script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in text
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


@pytest.mark.slow
def test_html_loads_nothing_from_elsewhere(verdict, tmp_path):
    text = written(sample(verdict), tmp_path, "html")
    loads = [
        attrs[name]
        for _, attrs in parsed(text).tags
        for name in ("src", "href", "srcset", "action", "data", "xlink:href")
        if name in attrs
    ]
    assert [load for load in loads if not load.startswith("#")] == ["data:,"]
    assert not re.search(r"url\((?!#)|@import|https?://", text)


@pytest.mark.slow
def test_html_lets_no_script_run_but_its_own(verdict, tmp_path):
    text = written(sample(verdict), tmp_path, "html")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (
        attrs["content"]
        for tag, attrs in parsed(text).tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in policy
    assert "alert" not in script


@pytest.mark.slow
def test_the_same_report_gives_the_same_bytes(verdict, tmp_path):
    """Also in another process, where nothing was drawn before."""
    code = (
        "import pickle, sys; from pathlib import Path; from exporter.report import write_report; "
        "write_report(pickle.loads(sys.stdin.buffer.read()), Path(sys.argv[1]))"
    )
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    write_report(sample(verdict), here)
    done = [sys.executable, "-c", code, str(there)]
    subprocess.run(done, input=pickle.dumps(sample(verdict)), check=True)
    for kind in ("html", "md", "json"):
        assert (here / f"report.{kind}").read_bytes() == (there / f"report.{kind}").read_bytes()


@pytest.mark.slow
def test_html_is_accessible(verdict, tmp_path):
    page = parsed(written(sample(verdict), tmp_path, "html"))
    plots = [attrs for tag, attrs in page.tags if tag == "svg"]
    drawn = 2 if verdict == "not-run" else 3
    assert [attrs["class"] for attrs in plots] == ["wide", "narrow"] * drawn
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    count = [tag for tag, _ in page.tags].count
    assert count("table") == count("caption") > 4
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.tags if tag == "th")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labelled = {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs}
    assert labelled == {attrs["id"] for tag, attrs in page.tags if tag == "h2"}


@pytest.mark.slow
def test_references_within_a_page_have_a_target(verdict, tmp_path):
    text = written(sample(verdict), tmp_path, "html")
    ids = {attrs["id"] for _, attrs in parsed(text).tags if "id" in attrs}
    referred = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert referred
    assert referred <= ids


def test_plots_follow_the_colours_of_the_page(verdict, tmp_path):
    text = written(sample(verdict), tmp_path, "html")
    for plot in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        painted = set(re.findall(r"(?:fill|stroke|color): ([^;\"]+)", plot))
        assert painted
        assert all(
            colour == "none" or re.fullmatch(r"var\(--[\w-]+\)", colour) for colour in painted
        )
        assert "font-family" not in plot


def test_what_one_clip_costs_is_shown_where_it_is_known(tmp_path):
    report = sample("pass")
    assert "arithmetic of one clip" not in written(report, tmp_path, "html")
    costs = {"flops": 41_900_000_000, "bytes": 512_000_000}
    known = replace(report, graph=report.graph | costs)
    text = "".join(parsed(written(known, tmp_path, "html")).text)
    assert "41.9 GFLOP" in text
    assert "512 MB" in text
    assert "model.onnx: 11.2 MB" in graph_line(known) == graph_line(report)


def test_how_near_the_machine_s_limit_a_runtime_is_is_shown_where_it_is_known(tmp_path):
    eager, onnxruntime = sample("pass").latency
    rows = (eager, replace(onnxruntime, of_limit=0.614))
    text = written(replace(sample("pass"), latency=rows), tmp_path, "html")
    assert "Of limit</th>" in text
    assert "<td>61.4 %</td>" in text
    assert "Of limit</th>" not in written(sample("pass"), tmp_path, "html")


def test_baselines_are_not_the_latency_of_what_was_made(tmp_path):
    baseline = replace(latency_row("onnxruntime", 5.0, 9.0), precision="fp16")
    report = replace(sample("pass"), latency=(*sample("pass").latency, baseline))
    assert "<dt>Median latency</dt><dd><b>842 ms</b>" in written(report, tmp_path, "html")


def test_runs_are_drawn_and_the_slow_ones_counted(tmp_path):
    row = latency_row("onnxruntime", 10.0, 1.3)
    report = replace(sample("pass"), latency=(replace(row, samples_ms=(9.0, 10.0, 11.0, 50.0)),))
    text = written(report, tmp_path, "html")
    assert len(marks_of(parsed(text), "runs")) == 2 * 3
    assert text.count(">+ 1 slower<") == 2
    assert "one run, the first at the top" in text
    assert "one run, the first at the top" not in written(sample("pass"), tmp_path, "html")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verdict", "word"),
    [
        ("pass", "Pass"),
        ("fail", "Fail"),
        ("ill-conditioned", "Ill-conditioned"),
        ("not-run", "Not run"),
    ],
)
def test_the_verdict_is_said_in_words_everywhere(verdict, word, tmp_path):
    report = sample(verdict)
    page = "".join(parsed(written(report, tmp_path, "html")).text)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert f"{word}\n" in page
    assert lines[0].endswith(f"tsformer: {word}")
    assert word in printed(report).splitlines()[0]


def test_ill_conditioned_is_explained():
    assert headline(sample("ill-conditioned")) == (
        "Two float roundings of the same model differ by 0.98: no export of it can be proven."
    )


@pytest.mark.slow
def test_an_engine_that_was_not_run_is_built_not_executed(tmp_path):
    report = sample("pass")
    assert "; built, not executed (no GPU on this machine)" in engine_line(report)
    assert not any("tensorrt_rtx" in line for line in notes(report)), "said twice"
    silent = {"bytes": 1, "flavour": "tensorrt_rtx"}
    assert "; built, not executed (no GPU" in engine_line(replace(report, engine=silent))
    assert engine_line(EMPTY) == "model.engine: not built"
    unbuilt = replace(report, engine={})
    assert engine_line(unbuilt) == "model.engine: not built (no GPU on this machine)"
    cuda = replace(NOT_RUN, runtime="onnxruntime")
    assert notes(replace(report, parity=(cuda,)))[-1] == (
        "onnxruntime (cuda, fp32): not executed: no GPU on this machine"
    )
    for suffix in ("html", "md"):
        assert "built, not executed" in written(report, tmp_path, suffix)


def engine_of(**facts):
    return {"bytes": 4_000_000, "flavour": "tensorrt_rtx", "version": "1.7", **facts}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"kernels": 196, "attentions": 24, "fused_attentions": 24},
            "196 kernels, 24 of 24 attent",
        ),
        ({"kernels": 97, "attentions": 0, "fused_attentions": 0}, "1.7; 97 kernels; built"),
        ({"kernels": None}, "kernels not known"),
        ({}, "kernels not known"),
    ],
)
def test_the_engine_line_counts_kernels_and_fused_attentions(facts, said):
    report = replace(sample("pass"), engine=engine_of(**facts))
    assert said in engine_line(report)


def test_attentions_that_are_not_fused_are_named_with_the_reason():
    unfused = [{"module": f"blocks.{i}.attn_t.fn", "reason": "too wide"} for i in range(6)]
    unfused.append({"module": "blocks.9.attn_s.fn", "reason": ""})
    facts = {"kernels": 9, "attentions": 8, "fused_attentions": 1, "unfused": unfused}
    report = replace(sample("pass"), engine=engine_of(**facts))
    report = replace(report, spec={**report.spec, "precision": "fp16"})
    wide, unknown = (line for line in notes(report) if line.startswith("model.engine"))
    assert wide == (
        "model.engine: 7 of 8 attentions are no single kernel: blocks.0.attn_t.fn, "
        "blocks.1.attn_t.fn, blocks.2.attn_t.fn, blocks.3.attn_t.fn and others: too wide"
    )
    assert unknown.endswith("blocks.9.attn_s.fn: TensorRT gives no reason")


def test_a_float32_engine_says_that_float32_is_the_reason():
    facts = {"kernels": 9, "attentions": 4, "unfused": [{"module": "a", "reason": "b"}] * 3}
    report = replace(sample("pass"), engine=engine_of(**facts))
    report = replace(report, spec={**report.spec, "precision": "fp32"})
    assert (
        "model.engine: 3 of 4 attentions are no single kernel: TensorRT fuses float32 attention of "
        "one query only"
    ) in notes(report)


def test_a_report_without_real_clips_says_so():
    report = sample("pass")
    assert notes(report)[0] == "Inputs: 2 real clips, 3 synthetic"
    assert notes(replace(report, spec={}))[0] == "No real clip was given: 5 synthetic inputs"
    assert notes(EMPTY)[0] == "Nothing was compared"


def test_allow_ill_conditioned_is_reported():
    report = sample("ill-conditioned")
    allowed = replace(report, spec=report.spec | {"allow_ill_conditioned": True})
    assert any("--allow-ill-conditioned" in line for line in notes(allowed))
    assert overall_verdict(allowed.parity) == "ill-conditioned"


def printed(report: Report, width: int = 200) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(summary_table(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_summary_fits_80_columns(verdict):
    report = sample(verdict)
    wide = replace(latency_row("onnxruntime_with_a_long_name", 1234567.0, 123.456), device="cuda:0")
    report = replace(report, latency=(*report.latency, wide))
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "ill-conditioned" in text or verdict != "ill-conditioned"
    assert "1.32x" in text


def test_the_summary_says_what_was_built_how_close_and_how_fast():
    text = " ".join(printed(sample("pass")).split())
    for words in (
        "11.2 MB, 412 nodes",
        "27.4 MB",
        "built, not executed",
        "5.5e-07",
        "842",
        "1.32x",
    ):
        assert words in text


def test_the_summary_keeps_the_rows_of_several_batches():
    report = sample("pass")
    more = replace(latency_row("onnxruntime", 13370.0, 1.4), batch=16)
    text = printed(replace(report, latency=(*report.latency, more)))
    assert "842" in text
    assert "13,400" in text
    assert len(re.findall(r"batch", text)) == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(84.234, "84.2"), (1234.5, "1,230"), (0.01239, "0.0124"), (99.96, "100"), (9.996, "10.0"),
     (0.0, "0"), (None, "-"), (math.nan, "-")],
)  # fmt: skip
def test_milliseconds_have_three_digits(value, text):
    assert ms(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.14e-7, "3.1e-07"),
        (0.976, "0.98"),
        (0.0, "0"),
        (None, "-"),
        (math.nan, "not a number"),
        (math.inf, "infinite"),
    ],
)
def test_errors_have_two_digits(value, text):
    assert sci(value) == text


def test_r2_below_0_is_a_number_in_the_axes(tmp_path):
    values = {"onnxruntime": -0.35, "eager": -1.2}
    rows = tuple(
        Accuracy(name, "cpu", "fp32", "list.csv", 8, value, None, None, 1.0, "R2")
        for name, value in values.items()
    )
    report = replace(sample("pass"), accuracy=rows)
    text = written(report, tmp_path, "html")
    shown = " ".join(parsed(text).text)
    assert "R2 on labelled clips." in shown
    assert "-0.35" in shown
    assert not re.search(r"-35 %|-1\.2\d* %|-120 %", text)
    assert "| -0.35 |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "R2 of onnxruntime (cpu, fp32) on list.csv: -0.35 of 8 clips" in notes(report)
    wide = ElementTree.fromstring(f"{accuracy_plot('a', rows)}")[0]
    (axes,) = wide.iter("rect")
    left, width = float(axes.get("x")), float(axes.get("width"))
    dots = [float(use.get("x")) for use in wide.iter("use")]
    assert len(dots) == 2
    assert all(left <= dot <= left + width for dot in dots)


def test_a_share_is_a_percentage_with_its_interval(tmp_path):
    row = Accuracy("onnxruntime", "cpu", "fp32", "d", 8, 0.75, 0.5, 0.9, 1.0)
    report = replace(sample("pass"), accuracy=(row,))
    shown = " ".join(parsed(written(report, tmp_path, "html")).text)
    assert "Top-1 on labelled clips, in per cent; the line is the 95 % interval." in shown
    assert "75 %" in shown
    assert "| 75 % |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_values_are_written_for_people():
    assert human(None) == human([]) == "none"
    assert human(True) == "yes"
    assert human(0.25) == "0.25"
    assert human({"tensorrt": None, "tensorrt_rtx": "1.7"}) == "tensorrt: none, tensorrt_rtx: 1.7"
    assert human((512, 384)) == "512, 384"
    assert human(2764802) == "2,764,802"
    assert human(5e-10) == "5e-10"
    assert human(-5e-10) == "-5e-10"
    assert human(0.0) == human(-0.0) == "0"
    assert human(math.nan) == "not a number"
    assert graph_line(EMPTY) == "model.onnx: not made"
