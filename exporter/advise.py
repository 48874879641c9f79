"""Which export to deploy: the Pareto front of a sweep, and the pick within limits (pure).

Only what is proven counts: the cell as a whole, and the runtime that was timed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from exporter.errors import NoExportError, UsageError
from exporter.grid import name_of
from exporter.report.words import graph_size

Criterion = Literal["accuracy", "error"]
NO_ACCURACY = (
    "No accuracy was measured (sweep with --eval): cells are compared by their error, which says "
    "how close each is to its own model, not how good that model is."
)


@dataclass(frozen=True)
class Choice:
    """One cell in one runtime, with its figures.

    `error` is the worst relative L2 distance from the cell's own float64 truth; `bytes` is the size
    of what is deployed; `memory_mb` the peak resident memory of the process (MiB).
    """

    cell: Mapping[str, Any]
    directory: str
    runtime: str
    device: str
    precision: str
    verdict: str
    p50_ms: float
    error: float
    accuracy: float | None
    bytes: int
    memory_mb: float

    @property
    def name(self) -> str:
        """The cell in words, with its runtime."""
        return f"{name_of(self.cell)} in {self.runtime}"


@dataclass(frozen=True)
class Limits:
    """What a choice must keep; None is no limit. Latency in milliseconds, memory in bytes."""

    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    max_memory: float | None = None

    def excesses(self, choice: Choice) -> dict[str, tuple[float, float]]:
        """What a choice misses: its figure and the limit, by name."""
        accuracy = -1.0 if choice.accuracy is None else choice.accuracy
        figures = (
            ("latency", choice.p50_ms, self.max_latency_ms, 1),
            ("accuracy", accuracy, self.min_accuracy, -1),
            ("memory", choice.memory_mb * 2**20, self.max_memory, 1),
        )
        return {
            name: (got, limit)
            for name, got, limit, sign in figures
            if limit is not None and not sign * got <= sign * limit
        }


@dataclass(frozen=True)
class Advice:
    """What was found: `pick` meets the limits; else `closest` is what comes nearest to them."""

    criterion: Criterion
    limits: Limits
    pick: Choice | None
    closest: Choice | None
    reason: str
    front: tuple[Choice, ...]
    proven: int
    cells: int

    def to_dict(self) -> dict[str, Any]:
        """Give the advice as JSON-ready values."""
        return asdict(self)


def advise(rows: Sequence[Mapping[str, Any]], limits: Limits, runtime: str | None = None) -> Advice:
    """The front of latency against quality, and the pick.

    Quality is accuracy where it was measured, else the model's error. Of what meets the limits the
    pick is the fastest where `min_accuracy` says how good is good enough, else the best.

    Args:
        rows: Those of `sweep.json`.
        limits: What the pick must keep.
        runtime: Count this runtime only.

    Raises:
        UsageError: if the runtime was not timed, or an accuracy is asked for and none was measured.
    """
    choices = [choice for row in rows for choice in measured(row)]
    if runtime:
        names = sorted({choice.runtime for choice in choices})
        choices = [choice for choice in choices if choice.runtime == runtime]
        if names and not choices:
            raise UsageError("--runtime", got=runtime, expected=f"one of {', '.join(names)}")
    proven = [choice for choice in choices if choice.verdict == "pass"]
    criterion = criterion_of(proven)
    if proven and limits.min_accuracy is not None and criterion == "error":
        raise UsageError(
            "--min-accuracy: no accuracy was measured", remedy="sweep with --eval, as --eval motion"
        )
    if criterion == "accuracy":
        proven = [choice for choice in proven if choice.accuracy is not None]
    front = tuple(pareto(proven, criterion))
    fitting = [choice for choice in proven if not limits.excesses(choice)]
    found = choose(fitting, criterion, fastest=limits.min_accuracy is not None)
    closest = None if found else _closest(proven, limits)
    reason = _reason(found, closest, limits, criterion, len(fitting))
    return Advice(criterion, limits, found, closest, reason, front, len(proven), len(rows))


def measured(row: Mapping[str, Any]) -> list[Choice]:
    """The runtimes that were timed on one cell, each with its own verdict.

    Eager PyTorch and baselines are not among them: nobody exports to run those.
    """
    report = row["report"]
    if report is None:
        return []
    timed = {_who(entry): entry for entry in report["latency"]}
    accurate = {_who(entry): entry["accuracy"] for entry in report.get("accuracy") or ()}
    return [
        Choice(
            cell=row["cell"],
            directory=row["directory"],
            runtime=parity["runtime"],
            device=parity["device"],
            precision=parity["precision"],
            # A cell is proven as a whole: its engine may have failed where its graph passed.
            verdict=row["verdict"] if row["verdict"] != "pass" else parity["verdict"],
            p50_ms=timed[_who(parity)]["p50_ms"],
            error=math.inf if parity["rel_l2"] is None else parity["rel_l2"],
            accuracy=accurate.get(_who(parity)),
            bytes=_bytes(report, parity["runtime"]),
            memory_mb=timed[_who(parity)]["peak_memory_mb"],
        )
        for parity in report["parity"]
        if _who(parity) in timed
    ]


def criterion_of(choices: Iterable[Choice]) -> Criterion:
    """What choices can be compared by, beside their latency."""
    return "accuracy" if any(choice.accuracy is not None for choice in choices) else "error"


def loss(choice: Choice, criterion: Criterion) -> float:
    """What is to be small, beside latency: the share of wrong answers, or the error."""
    if criterion == "accuracy":
        return math.inf if choice.accuracy is None else 1 - choice.accuracy
    return choice.error


def dominates(one: Choice, other: Choice, criterion: Criterion) -> bool:
    """Whether one is nowhere worse than the other, and somewhere better."""
    ours = (one.p50_ms, loss(one, criterion))
    theirs = (other.p50_ms, loss(other, criterion))
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def pareto(choices: Sequence[Choice], criterion: Criterion) -> list[Choice]:
    """Those that no other dominates, the fastest first."""
    front = [
        choice
        for choice in choices
        if not any(dominates(other, choice, criterion) for other in choices)
    ]
    return sorted(front, key=lambda choice: choice.p50_ms)


def choose(choices: Sequence[Choice], criterion: Criterion, *, fastest: bool) -> Choice | None:
    """The fastest, or the best; of equal ones what is better in the other, then the smaller."""

    def rank(choice: Choice) -> tuple[float, ...]:
        both = (choice.p50_ms, loss(choice, criterion))
        return (*(both if fastest else both[::-1]), choice.bytes)

    return min(choices, key=rank, default=None)


def _closest(choices: Sequence[Choice], limits: Limits) -> Choice | None:
    """What misses its worst limit by the smallest part of it."""

    def distance(choice: Choice) -> float:
        return max(abs(got - limit) / limit for got, limit in limits.excesses(choice).values())

    return min(choices, key=distance, default=None)


def _reason(
    pick: Choice | None, closest: Choice | None, limits: Limits, criterion: Criterion, fitting: int
) -> str:
    if pick:
        rule = (
            "the fastest that is accurate enough"
            if limits.min_accuracy is not None
            else f"the {'most accurate' if criterion == 'accuracy' else 'closest to its model'}"
        )
        among = f"of the {fitting} proven choices" if fitting > 1 else "of the only proven choice"
        within = " within the limits" if limits != Limits() else ""
        return f"{pick.name} is {rule} {among}{within}: {figures(pick)}."
    if closest is None:
        return "No cell is proven, so none can be advised."
    misses = [_miss(name, *pair) for name, pair in limits.excesses(closest).items()]
    return f"Nothing meets the limits; closest is {closest.name}, which misses {', '.join(misses)}."


def figures(choice: Choice) -> str:
    """Latency and quality in words."""
    quality = f"error {choice.error:.1e}"
    if choice.accuracy is not None:
        quality = f"accuracy {choice.accuracy:.1%}"
    return f"{choice.p50_ms:.3g} ms, {quality}"


def _miss(name: str, got: float, limit: float) -> str:
    by = abs(got - limit)
    if name == "latency":
        return f"the latency by {by:.3g} ms ({got:.3g} for {limit:.3g})"
    if name == "accuracy":
        return f"the accuracy by {100 * by:.3g} points ({got:.1%} for {limit:.1%})"
    return f"the memory by {by / 1e6:.3g} MB ({got / 1e6:.3g} for {limit / 1e6:.3g})"


def _who(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(entry[name] for name in ("runtime", "device", "precision"))


def _bytes(report: Mapping[str, Any], runtime: str) -> int:
    if runtime.startswith("tensorrt"):
        return report["engine"].get("bytes") or 0
    return int(graph_size(report["graph"]) or 0)


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of a sweep, or the one row that a single export is.

    Raises:
        NoExportError: if the directory is neither, or its JSON is not what we wrote.
    """
    sweep, report = directory / "sweep.json", directory / "report.json"
    try:
        if sweep.exists():
            rows = json.loads(sweep.read_text(encoding="utf-8"))["rows"]
        else:
            rows = [_as_row(directory, json.loads(report.read_text(encoding="utf-8")))]
        for row in rows:
            measured(row)
    except OSError as error:
        raise NoExportError(
            f"{directory} is neither a sweep nor an export of tsformer: cannot read "
            f"{report.name}: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoExportError(f"the JSON of {directory} is damaged: {error!r}") from error
    return rows


def _as_row(directory: Path, report: dict[str, Any]) -> dict[str, Any]:
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return {
        "cell": {"export": directory.absolute().name},
        "status": "done",
        "verdict": manifest["verdict"],
        "directory": ".",
        "report": report,
    }
