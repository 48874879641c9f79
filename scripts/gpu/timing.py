"""Subjects and runtimes -> rows. Each round times every available runtime once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from runtimes import PUBLISHED, RUNTIMES, Run, UnavailableError
from subject import MIN_ROUNDS, Subject

from model.config import Semantics

WARMUP_RUNS = 3
COPY = "copy of the clips to the device"
Status = Literal["timed", "failed", "missing", "left out"]


@dataclass(frozen=True)
class Row:
    """One runtime in one case; `speedup` compares it with PUBLISHED in the same rounds."""

    mechanism: str
    resolution: int
    batch: int
    precision: str
    runtime: str
    status: Status
    reason: str = ""
    p10_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    clips_per_s: float | None = None
    runs: int = 0
    speedup: float | None = None
    rel_l2: float | None = None


@dataclass
class Deadline:
    """The time limit, and the longest preparation time of each runtime so far."""

    limit: float
    started: float = field(default_factory=time.monotonic)
    longest: dict[str, float] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """The reason in a row that was left out."""
        return f"time limit of {self.limit:g} s"

    def left(self) -> float:
        """Return the seconds until the limit."""
        return self.limit - (time.monotonic() - self.started)

    def allows(self, runtime: str) -> bool:
        """Tell whether a runtime can get ready in time, judged by the earlier cases."""
        return self.longest.get(runtime, 0.0) < self.left()

    def note(self, runtime: str, seconds: float) -> None:
        """Record the preparation time of a runtime."""
        self.longest[runtime] = max(seconds, self.longest.get(runtime, 0.0))


def time_on_cpu(run: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one run."""
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def time_on_cuda(run: Callable[[], object]) -> float:
    """Return the seconds between two events around one run; the current stream must be idle."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


CLOCKS: Mapping[str, Callable[[Callable[[], object]], float]] = {
    "cpu": time_on_cpu,
    "cuda": time_on_cuda,
}


def measure(subject: Subject, runtimes: Sequence[str], deadline: Deadline) -> list[Row]:
    """Return the rows of one case: first the timed runtimes, then the others."""
    torch.backends.cuda.matmul.allow_tf32 = subject.precision.tf32
    torch.backends.cudnn.allow_tf32 = subject.precision.tf32
    torch._dynamo.reset()  # otherwise its recompilation limit counts over all cases
    ready, rows = prepare(subject, runtimes, deadline)
    copied = torch.empty_like(subject.video)
    runs: dict[str, Callable[[], object]] = {name: run for name, (run, _) in ready.items()}
    runs[COPY] = lambda: copied.copy_(subject.host_video, non_blocking=True)
    seconds = time_rounds(runs, subject, deadline)
    timed = []
    for name, taken in seconds.items():
        published = seconds.get(PUBLISHED) if name in ready else None
        figures = summarize(taken, subject.case.batch, published)
        row = Row(**asdict(subject.case), runtime=name, status="timed", **figures)
        if name in ready:
            error = ready[name][1]
            finite = math.isfinite(error)
            row = replace(row, rel_l2=error if finite else None)
            row = row if finite else replace(row, reason="the logits are not finite")
        timed.append(row)
    return timed + rows


def prepare(
    subject: Subject, runtimes: Sequence[str], deadline: Deadline
) -> tuple[dict[str, tuple[Run, float]], list[Row]]:
    """Make and warm up the runtimes; return each run with its error, and a row for each absence."""
    ready: dict[str, tuple[Run, float]] = {}
    rows: list[Row] = []
    for name in runtimes:
        row = partial(Row, **asdict(subject.case), runtime=name)
        if not deadline.allows(name):
            rows.append(row(status="left out", reason=deadline.reason))
            continue
        started = time.monotonic()
        try:
            run = RUNTIMES[name](subject)
            ready[name] = run, warm_up(subject, run, "upstream" if name == PUBLISHED else "paper")
        except UnavailableError as error:
            rows.append(row(status="missing", reason=str(error)))
        except Exception as error:  # a runtime may raise anything; the row reports it
            rows.append(row(status="failed", reason=describe_error(error)))
        deadline.note(name, time.monotonic() - started)
    return ready, rows


def warm_up(subject: Subject, run: Run, semantics: Semantics) -> float:
    """Run until the warm-up is over; return the relative L2 error of the last logits."""
    until = time.monotonic() + subject.sizes.warmup_seconds
    runs = 0
    while runs < WARMUP_RUNS or time.monotonic() < until:
        CLOCKS[subject.device.type](run)  # waits, so that the device does not queue many runs
        runs += 1
    logits = run()
    truth = subject.truth(semantics)
    return float((logits.double() - truth).norm() / truth.norm())


def time_rounds(
    runs: Mapping[str, Callable[[], object]], subject: Subject, deadline: Deadline
) -> dict[str, list[float]]:
    """Return the seconds of every run; each round runs all of them, in a rotated order."""
    clock, sizes, names = CLOCKS[subject.device.type], subject.sizes, list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    until = time.monotonic() + min(sizes.case_seconds, deadline.left())
    for done in range(sizes.rounds):
        if done >= MIN_ROUNDS and time.monotonic() >= until:
            break
        for place in range(len(names)):
            name = names[(place + done) % len(names)]
            seconds[name].append(clock(runs[name]))
    return seconds


def summarize(
    seconds: Sequence[float], batch: int, published: Sequence[float] | None
) -> dict[str, Any]:
    """Compute the figures of a timed row (pure)."""
    p10, p50, p90 = (float(ms) for ms in np.percentile(np.asarray(seconds) * 1e3, [10, 50, 90]))
    speedup = None
    if published:
        speedup = float(np.median(np.asarray(published) / np.asarray(seconds)))
    return {
        "p10_ms": p10,
        "p50_ms": p50,
        "p90_ms": p90,
        "clips_per_s": batch * 1e3 / p50,
        "runs": len(seconds),
        "speedup": speedup,
    }


def describe_error(error: Exception) -> str:
    """Return the class and the first 300 characters of an error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
