"""The sentences of a report, made once, so that every form of it says the same.

Names of clips and messages of libraries are foreign text, and each form escapes them for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.report.escape import clause
from exporter.report.formats import human, mb, sci
from exporter.results import (
    Accuracy,
    InputParity,
    Ladder,
    Latency,
    Parity,
    Report,
    Rung,
    Verdict,
    is_eager_pass,
    overall_verdict,
)

WORDS: dict[Verdict, tuple[str, str, str]] = {  # word, mark, style in the terminal
    "pass": ("Pass", "✓", "bold green"),
    "fail": ("Fail", "✗", "bold red"),
    "ill-conditioned": ("Ill-conditioned", "≈", "bold yellow"),
    "not-run": ("Not run", "○", "bold"),
}
EXPLANATION = (
    "The truth is the eager PyTorch model computed in float64. The floor is the distance of the "
    "same eager model from the truth at the precision of the export: the effect of rounding alone "
    "on this model and these inputs. The tolerance is four times the floor, or a small constant of "
    "the precision if that is larger. A runtime passes if its relative L2 distance from the truth "
    "is within the tolerance, and its answer is that of the truth on every input where rounding "
    "cannot change it: the top-1 class, or which labels apply where labels are independent. The "
    "structure of a graph is judged apart from rounding: the graph is computed in float64, against "
    "the eager model in float64 with the weights of the graph."
)
LOGITS = Parity.output  # the default: most reports are about nothing else
SHOWN_MODULES = 4  # of the modules in one line
BUSY_CORES = 0.2  # above this, latencies cannot be trusted


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
    exact = [row for row in rows if row.judged == "structure"]
    if verdict == "pass":
        rows = [row for row in rows if row.judged == "rounding"]
    worst = worst_row(rows)
    error, tolerance = sci(worst.rel_l2), sci(worst.tolerance)
    numbers = f"worst relative error {error}, tolerance {tolerance}, {worst.inputs} inputs."
    if verdict == "fail":
        reason = f" ({clause(worst.reason)})" if worst.reason else ""
        return f"Not proven in {who(worst)}{reason}: {numbers}"
    where = " and ".join(dict.fromkeys(map(runtime_of, rows)))
    structure = f" Structure: {sci(worst_row(exact).rel_l2)} in float64." if exact else ""
    return f"Proven in {where}{_outputs_clause(rows)}: {numbers}{structure}"


def _outputs_clause(rows: Iterable[Parity]) -> str:
    """Name the outputs that were compared, unless they are the logits alone."""
    names = list(dict.fromkeys(row.output for row in rows))
    return "" if names == [LOGITS] else f" for {', '.join(names)}"


def notes(report: Report) -> list[str]:
    """List what a reader of the headline must know too."""
    lines = [_inputs_line(report)]
    lines += [f"Model: {note}" for note in report.spec.get("notes") or ()]
    if missing := report.spec.get("clips_not_given"):
        lines.append(f"Not judged, give them with --video: {', '.join(map(clause, missing))}")
    if clip := report.spec.get("clip"):
        lines.append(f"Clips: {clip[0]}")
    lines += _task_line(report.spec.get("task"))
    lines += busy_line(report.environment)
    if report.spec.get("allow_ill_conditioned"):
        lines.append("--allow-ill-conditioned was given: it changes the exit code, not the verdict")
    if any(row.runtime == "onnxruntime" and row.precision == "fp16" for row in report.latency):
        lines.append(
            "ONNX Runtime computes fp16 in float32 on a CPU; onnx-reference really rounds to it"
        )
    lines += unfused_lines(report.engine, str(report.spec.get("precision")))
    lines += [_accuracy_line(row) for row in report.accuracy]
    lines += [f"{row.name}: {row.detail}" for row in report.stages if row.status == "failed"]
    lines += [ladder_line(report.ladder)] if report.ladder else []
    lines += [
        f"{who(row)}: not executed: {clause(row.reason) or 'no reason was given'}"
        for row in report.parity
        if row.verdict == "not-run" and not row.runtime.startswith("tensorrt")  # see engine_line
    ]
    return lines


def _task_line(task: object) -> list[str]:
    """Say what the logits mean, unless one class of several is right."""
    told = {
        "multi-label": "Logits: independent labels; the sigmoid of each is its score",
        "regression": "Logits: values; they are no scores of classes",
    }
    return [told[str(task)]] if task in told else []


def busy_line(environment: Mapping[str, Any]) -> list[str]:
    """Warn in one line if other processes disturbed the timing."""
    others = environment.get("cores_busy_with_others") or 0.0
    if others <= BUSY_CORES:
        return []
    return [f"Timed while other processes kept {others:.1f} cores busy: time it again"]


def _inputs_line(report: Report) -> str:
    total = max((row.inputs for row in report.parity), default=0)
    clips = min(total, len(report.spec.get("video") or ()))
    if not total:
        return "Nothing was compared"
    if report.spec.get("given"):
        return f"Inputs: {total} given"
    if not clips:
        return f"No real clip was given: {total} synthetic inputs"
    return f"Inputs: {clips} real clip{'s' if clips > 1 else ''}, {total - clips} synthetic"


def _accuracy_line(row: Accuracy) -> str:
    what = "Accuracy" if row.measure == "top-1" else row.measure
    value, interval = f"{100 * row.accuracy:.1f} %" if row.is_share else human(row.accuracy), ""
    if row.low is not None and row.high is not None:
        interval = f" ({100 * row.low:.1f} to {100 * row.high:.1f} %)"
    bad = f"; {row.bad} bad clips do not count" if row.bad else ""
    return f"{what} of {who(row)} on {row.dataset}: {value}{interval} of {row.clips} clips{bad}"


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
    """Describe the engine in one line; an engine without a status counts as built, not executed."""
    engine = report.engine
    unrun = (row for row in report.parity if row.verdict == "not-run")
    reasons = [row.reason for row in unrun if row.runtime.startswith("tensorrt")]
    reason = clause(engine.get("reason") or " ".join(reasons))
    status = engine_status(engine) + (f" ({reason})" if reason else "")
    if not engine.get("bytes"):
        return f"model.engine: {status}"
    made = f"{engine.get('flavour') or 'TensorRT'} {engine.get('version') or ''}".strip()
    targets = f" for {human(engine['targets'])}" if engine.get("targets") else ""
    return f"model.engine: {mb(engine['bytes'])}, {made}{targets}; {fusion_line(engine)}; {status}"


def fusion_line(engine: Mapping[str, Any]) -> str:
    """Count the kernels of an engine, and its attentions that are one kernel."""
    if engine.get("kernels") is None:
        return "kernels not known"
    kernels = f"{human(engine['kernels'])} kernels"
    if not engine.get("attentions"):
        return kernels
    fused = f"{engine.get('fused_attentions')} of {engine['attentions']}"
    return f"{kernels}, {fused} attentions fused"


def unfused_lines(engine: Mapping[str, Any], precision: str) -> list[str]:
    """Warn of attentions that an engine computes in several kernels, with the reason if known."""
    unfused = engine.get("unfused") or ()
    if not unfused:
        return []
    count = f"{len(unfused)} of {engine.get('attentions')} attentions are no single kernel"
    if precision == "fp32":
        return [f"model.engine: {count}: TensorRT fuses float32 attention of one query only"]
    reasons: dict[str, list[str]] = {}
    for entry in unfused:
        reason = entry.get("reason") or "TensorRT gives no reason"
        reasons.setdefault(reason, []).append(str(entry.get("module") or "a module without name"))
    return [
        f"model.engine: {count}: {', '.join(modules[:SHOWN_MODULES])}"
        f"{' and others' if len(modules) > SHOWN_MODULES else ''}: {reason}"
        for reason, modules in reasons.items()
    ]


def engine_status(engine: Mapping[str, Any]) -> str:
    """Give the state of the engine; the weakest one if the report has none."""
    return engine.get("status") or ("built, not executed" if engine.get("bytes") else "not built")


def runtime_of(row: Parity | Latency | Accuracy) -> str:
    """Name the runtime, device and precision of a row."""
    return f"{row.runtime} ({row.device}, {row.precision})"


def who(row: Parity | Latency | Accuracy) -> str:
    """Name what a row is about: its runtime, and its output unless that is the logits."""
    output = getattr(row, "output", LOGITS)
    return runtime_of(row) if output == LOGITS else f"{runtime_of(row)} {output}"


def worst_row(rows: Iterable[Parity]) -> Parity:
    """Give the row whose error is largest in units of its tolerance; NaN is the worst."""

    def closeness(row: Parity) -> float:
        units = (math.nan if row.rel_l2 is None else row.rel_l2) / (row.tolerance or math.nan)
        return math.inf if math.isnan(units) else units

    return max(rows, key=closeness)


def worst_input(row: Parity) -> str:
    """Name the input whose error is largest; NaN is the worst, and without inputs it is empty."""

    def error(item: InputParity) -> float:
        return math.inf if math.isnan(item.rel_l2) else item.rel_l2

    return max(row.per_input, key=error).name if row.per_input else ""


def ladder_line(ladder: Ladder) -> str:
    """Say in one sentence where a ladder leaves its model."""
    where = f"{ladder.runtime} ({ladder.device}, {ladder.precision})"
    if not ladder.first_divergence:
        return f"{where}: every module is within the rounding of eager PyTorch."
    found = f"{where}: {ladder.first_divergence} is the first module above its limit"
    if ladder.first_not_finite:
        found += f", {ladder.first_not_finite} the first with NaN or infinity"
    return f"{found}."


def rung_mark(ladder: Ladder, rung: Rung) -> str:
    """Give the remark of a module on the ladder, empty for most."""
    if rung.path == ladder.first_not_finite:
        return "first NaN"
    return "first above limit" if rung.path == ladder.first_divergence else ""


@dataclass(frozen=True)
class Runtime:
    """Results of one runtime, at one of the batches that it was timed at."""

    name: str
    parity: Parity | None
    latency: Latency | None
    accuracy: Accuracy | None


def runtimes(report: Report) -> list[Runtime]:
    """Join the results of each runtime; those that were timed come first.

    A time stands beside the first output of its runtime.
    """
    parity: dict[str, Parity] = {}
    for row in report.parity:
        parity[who(row) if runtime_of(row) in parity else runtime_of(row)] = row
    accuracy = {who(row): row for row in report.accuracy}
    timed = [(who(row), row) for row in report.latency]
    untimed = [(name, None) for name in parity if name not in dict(timed)]
    several = len(dict(timed)) < len(timed)
    return [
        Runtime(
            f"{name}, batch {fast.batch}" if fast and several else name,
            parity.get(name),
            fast,
            accuracy.get(name),
        )
        for name, fast in [*timed, *untimed]
    ]


def fastest(report: Report) -> Latency | None:
    """Give the fastest runtime of the export; eager PyTorch and baselines do not count."""
    made = {runtime_of(row) for row in report.parity if row.runtime != "eager"}
    timed = (row for row in report.latency if who(row) in made)
    return min(timed, key=lambda row: row.p50_ms, default=None)
