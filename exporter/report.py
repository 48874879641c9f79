"""Results -> report.json, report.md, report.html and the terminal's summary; pure rendering.

The words are made here once, so that every form says the same. Names of clips and messages of
libraries are foreign text: every form escapes them in its own way.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from exporter.results import (
    Accuracy,
    Ladder,
    Latency,
    Parity,
    Report,
    Rung,
    Verdict,
    is_eager_pass,
    overall_verdict,
)

if TYPE_CHECKING:
    from exporter.tune import Recipe

WORDS: dict[Verdict, tuple[str, str, str]] = {  # word, mark, style in the terminal
    "pass": ("Pass", "✓", "bold green"),
    "fail": ("Fail", "✗", "bold red"),
    "ill-conditioned": ("Ill-conditioned", "≈", "bold yellow"),
    "not-run": ("Not run", "○", "bold"),
}
EXPLANATION = (
    "The truth is the eager PyTorch model computed in float64; the floor is how far the same eager "
    "model is from it at the precision of the export, which is what rounding alone does to this "
    "model on these inputs. The tolerance is four times the floor, or a tiny constant of the "
    "precision where that is larger: a runtime passes when its own relative L2 distance from the "
    "truth stays within it and its first class is the truth's wherever rounding cannot decide."
)
BUSY_CORES = 0.2  # above which latencies are not to be trusted
# What moves a terminal's cursor or turns the direction of text has no place in a report.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def write_report(report: Report, directory: Path) -> None:
    """Write `report.json`, `report.md` and `report.html` into an existing directory."""
    texts = {f"report.{kind}": _render(f"report.{kind}.jinja", report) for kind in ("md", "html")}
    for name, text in (texts | {"report.json": report_json(report) + "\n"}).items():
        # a file's name may hold bytes that are no text: show them escaped rather than fail
        (directory / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def report_json(report: Report) -> str:
    """Give the report as JSON."""
    return strict_json(report.to_dict())


def strict_json(values: Mapping[str, Any]) -> str:
    """Write JSON that strict parsers take: NaN and infinity become null."""
    return json.dumps(_strict(values), indent=2, allow_nan=False, ensure_ascii=False)


def summary_table(report: Report) -> RenderableType:
    """Say for the terminal what was built, how close it is and how fast, within 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("Runtime", "Verdict", "Error", "Allowed", "p50 ms", "p99 ms", "Speed"):
        justify = "left" if heading in ("Runtime", "Verdict") else "right"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading != "Runtime")
    parity, timed = {who(row): row for row in report.parity}, {who(row) for row in report.latency}
    rows = [(who(row), row) for row in report.latency]
    for name, fast in [*rows, *((name, None) for name in parity if name not in timed)]:
        close = parity.get(name)
        word, _, style = WORDS[close.verdict] if close else ("-", "", "")
        batch = f" batch {fast.batch}" if fast and len(rows) > len(timed) else ""
        table.add_row(
            _plain(re.sub("[(),]", "", name) + batch),
            Text(word.lower(), style),
            *(sci(getattr(close, key, None)) for key in ("rel_l2", "tolerance")),
            *(ms(getattr(fast, key, None)) for key in ("p50_ms", "p99_ms")),
            ratio(fast.ratio_to_eager if fast else None),
        )
    word, mark, style = WORDS[overall_verdict(report.parity)]
    title = Text(f"{mark} {word}. ", style).append_text(_plain(headline(report)))
    lines = [*notes(report), graph_line(report), engine_line(report)]
    return Constrain(Group(title, table, *map(_plain, lines)), width=80)


def ladder_table(ladder: Ladder) -> RenderableType:
    """Say for the terminal where a graph leaves its model, module by module."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("Module", "Error", "Eager", "Max abs", "Cosine", "Remark"):
        side = "left" if heading in ("Module", "Remark") else "right"
        table.add_column(heading, justify=side, overflow="fold", no_wrap=True)
    for rung in ladder.rungs:
        figures = (sci(rung.rel_l2), sci(rung.floor_rel_l2), sci(rung.max_abs))
        mark = rung_mark(ladder, rung)
        table.add_row(
            rung.path, *figures, f"{rung.cosine:.6f}", mark, style="bold red" if mark else None
        )
    return Group(_plain(ladder_line(ladder)), table)


def ladder_line(ladder: Ladder) -> str:
    """Give the finding of a ladder in one sentence."""
    where = f"{ladder.runtime} ({ladder.device}, {ladder.precision})"
    if not ladder.first_divergence:
        return f"{where}: every module is within the rounding of eager PyTorch."
    found = f"{where}: {ladder.first_divergence} is the first module above its limit"
    if ladder.first_not_finite:
        found += f", {ladder.first_not_finite} the first with NaN or infinity"
    return f"{found}."


def rung_mark(ladder: Ladder, rung: Rung) -> str:
    """What is to be said of a module on the ladder."""
    if rung.path == ladder.first_not_finite:
        return "first NaN"
    return "first above limit" if rung.path == ladder.first_divergence else ""


def recipe_table(recipe: Recipe) -> RenderableType:
    """Say for the terminal what to keep in float32, and what each module adds by itself."""
    line = (
        f"{recipe.precision}: error {sci(recipe.error)} within {recipe.budget:g} with "
        f"{len(recipe.keep_fp32)} modules in fp32 ({sci(recipe.error_without)} with none)"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Module", overflow="fold")
    table.add_column("Adds alone", justify="right")
    table.add_column("Kept in fp32")
    kept = {re.sub(r"\\(.)", r"\1", pattern) for pattern in recipe.keep_fp32}
    for path, error in recipe.alone.items():
        if path in kept:
            table.add_row(path, sci(error), "yes")
    return Group(_plain(line), table) if kept else _plain(line)


def headline(report: Report) -> str:
    """Give the reason of the overall verdict in one sentence."""
    verdict = overall_verdict(report.parity)
    if verdict == "not-run":
        return "No runtime was compared with the truth on this machine, so nothing is proven."
    rows = [r for r in report.parity if r.verdict == verdict and not is_eager_pass(r)]
    if verdict == "ill-conditioned":
        floor = sci(max(row.floor_rel_l2 or 0.0 for row in rows))
        roundings = f"Two float roundings of the same model differ by {floor}"
        return f"{roundings}: no export of it can be proven."
    worst = _worst(rows)
    error, tolerance = sci(worst.rel_l2), sci(worst.tolerance)
    numbers = f"worst relative error {error}, tolerance {tolerance}, {worst.inputs} inputs."
    if verdict == "fail":
        reason = f" ({_clause(worst.reason)})" if worst.reason else ""
        return f"Not proven in {who(worst)}{reason}: {numbers}"
    return f"Proven in {' and '.join(map(who, rows))}: {numbers}"


def notes(report: Report) -> list[str]:
    """Give what a reader of the headline must know beside it."""
    lines = [_inputs_line(report)]
    lines += [f"Model: {note}" for note in report.spec.get("notes") or ()]
    others = report.environment.get("cores_busy_with_others") or 0.0
    if others > BUSY_CORES:
        lines.append(f"Timed while other processes kept {others:.1f} cores busy: time it again")
    if report.spec.get("allow_ill_conditioned"):
        lines.append("--allow-ill-conditioned was given: it changes the exit code, not the verdict")
    if any(row.runtime == "onnxruntime" and row.precision == "fp16" for row in report.latency):
        lines.append(
            "ONNX Runtime computes fp16 in float32 on a CPU; onnx-reference really rounds to it"
        )
    lines += [_accuracy_line(row) for row in report.accuracy]
    lines += [ladder_line(report.ladder)] if report.ladder else []
    lines += [
        f"{who(row)}: not executed: {_clause(row.reason) or 'no reason was given'}"
        for row in report.parity
        if row.verdict == "not-run" and not row.runtime.startswith("tensorrt")  # see engine_line
    ]
    return lines


def _inputs_line(report: Report) -> str:
    total = max((row.inputs for row in report.parity), default=0)
    clips = min(total, len(report.spec.get("video") or ()))
    if not total:
        return "Nothing was compared"
    if not clips:
        return f"No real clip was given: {total} synthetic inputs"
    return f"Inputs: {clips} real clip{'s' if clips > 1 else ''}, {total - clips} synthetic"


def _accuracy_line(row: Accuracy) -> str:
    interval = f"{100 * row.low:.1f} to {100 * row.high:.1f} %"
    return (
        f"Accuracy of {who(row)} on {row.dataset}: {100 * row.accuracy:.1f} % ({interval}) of "
        f"{row.clips} clips"
    )


def graph_line(report: Report) -> str:
    """Describe the ONNX graph in one line."""
    graph = report.graph
    if not graph:
        return "model.onnx: not made"
    counts = (human(graph.get(key)) for key in ("nodes", "parameters", "opset"))
    return "model.onnx: {}, {} nodes, {} parameters, opset {}".format(
        mb(graph.get("file_bytes")), *counts
    )


def engine_line(report: Report) -> str:
    """Describe the engine in one line; without a status it is never called more than built."""
    engine = report.engine
    unrun = (row for row in report.parity if row.verdict == "not-run")
    reasons = [row.reason for row in unrun if row.runtime.startswith("tensorrt")]
    reason = _clause(engine.get("reason") or " ".join(reasons))
    status = engine_status(engine) + (f" ({reason})" if reason else "")
    if not engine.get("bytes"):
        return f"model.engine: {status}"
    made = f"{engine.get('flavour') or 'TensorRT'} {engine.get('version') or ''}".strip()
    targets = f" for {human(engine['targets'])}" if engine.get("targets") else ""
    return f"model.engine: {mb(engine['bytes'])}, {made}{targets}; {status}"


def engine_status(engine: Mapping[str, Any]) -> str:
    """Give what became of the engine, at its weakest where nothing is said."""
    return engine.get("status") or ("built, not executed" if engine.get("bytes") else "not built")


def who(row: Parity | Latency | Accuracy) -> str:
    """Name what a row is about."""
    return f"{row.runtime} ({row.device}, {row.precision})"


def _worst(rows: Iterable[Parity]) -> Parity:
    """Give the row whose error is largest in units of its tolerance; no number is the worst."""

    def closeness(row: Parity) -> float:
        units = (math.nan if row.rel_l2 is None else row.rel_l2) / (row.tolerance or math.nan)
        return math.inf if math.isnan(units) else units

    return max(rows, key=closeness)


def sci(value: float | None) -> str:
    """Write an error: two digits are all that rounding leaves."""
    if value is None or value == 0:
        return "-" if value is None else "0"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    return f"{value:.1e}" if value < 0.01 else f"{value:#.2g}".rstrip(".")


def ms(value: float | None) -> str:
    """Write a measured quantity with three significant digits."""
    if value is None or not math.isfinite(value):
        return "-"
    rounded = float(f"{value:.2e}")
    decimals = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:,.{max(decimals, 0)}f}"


def mb(count: float | None) -> str:
    """Write bytes as megabytes (10^6)."""
    return "-" if count is None else f"{ms(count / 1e6)} MB"


def ratio(value: float | None) -> str:
    """Write a speed-up over eager."""
    return "-" if value is None else f"{value:.2f}x"


def human(value: object) -> str:
    """Write any value of a spec, an environment or a graph for people."""
    if value is None or value in ((), [], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {human(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(human, value))
    return str(value)


def linear_ticks(largest: float) -> list[float]:
    """Give at most six round values from zero to just above `largest`."""
    largest = largest if largest > 0 else 1.0
    unit = 10.0 ** math.floor(math.log10(largest / 5))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= largest / 5)
    return [step * index for index in range(math.ceil(largest / step) + 1)]


def decades(values: Iterable[float | None]) -> tuple[int, int]:
    """Give the powers of ten that enclose the positive values."""
    logs = [math.log10(value) for value in values if value and 0 < value < math.inf]
    return (math.floor(min(logs)), math.floor(max(logs)) + 1) if logs else (-8, 0)


def _strict(value: object) -> object:
    """Turn a value into what strict JSON can hold: a number that is none becomes null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {_strict(str(key)): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def _clause(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _plain(text: str) -> Text:
    """Make terminal text of foreign text: no markup, no control characters."""
    return Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split())))


def _markdown(value: object) -> Markup:
    """Escape foreign text for one line of Markdown, also inside a table."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return Markup(re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", text))


def _code(value: object) -> Markup:
    """Show foreign text as code in a Markdown table: no mention, link or tag comes alive there."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}")


def _render(template: str, report: Report) -> str:
    environment = Environment(
        loader=PackageLoader("exporter", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    helpers = (sci, ms, mb, ratio, human, who, engine_status, linear_ticks, decades, ladder_line)
    environment.filters |= {function.__name__: function for function in helpers}
    environment.filters |= {"md": _markdown, "code": _code, "log10": math.log10, "worst": _worst}
    environment.filters["label"] = lambda key: str(key).replace("_", " ")
    environment.filters["cosine"] = lambda value: "-" if value is None else f"{value:.7f}"
    environment.filters["percent"] = lambda value: "-" if value is None else f"{100 * value:.3g} %"
    environment.tests["finite"] = math.isfinite
    environment.globals["rung_mark"] = rung_mark
    text = environment.get_template(template).render(
        report=report,
        verdict=overall_verdict(report.parity),
        words={verdict: word for verdict, (word, _, _) in WORDS.items()},
        marks={verdict: mark for verdict, (_, mark, _) in WORDS.items()},
        headline=headline(report),
        notes=[*notes(report), graph_line(report), engine_line(report)],
        explanation=EXPLANATION,
    )
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
