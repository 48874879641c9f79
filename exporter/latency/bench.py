"""Runners -> Latency: runs are interleaved, so that noise of the machine affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from exporter.machine.memory import peak_memory_mb, reset_peak_memory
from exporter.results import HOST_TO_HOST, Latency
from exporter.runners.base import Arrays, Runner
from exporter.runners.device import WARMUP_RUNS

MIN_RUNS, MAX_RUNS = 10, 100
SHORT_SECONDS = 0.02  # of a run that what was run before it slows noticeably


def bench(
    runners: Sequence[Runner],
    batch: Arrays,
    *,
    budget_seconds: float,
    most_runs: int = MAX_RUNS,
    on_round: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Latency]:
    """Time every runner on the same batch of inputs, host memory to host memory.

    One round times each runner once; every round starts with another runner. Between MIN_RUNS and
    `most_runs` rounds are timed: after MIN_RUNS, no round starts later than the budget. A runner
    whose runs are short has a run before each timed one: its threads sleep, and those of the runner
    before may not sleep yet.
    """
    warm = [_warm_up(runner, batch) for runner in runners]
    seconds: list[list[float]] = [[] for _ in runners]
    started = time.perf_counter()
    for done in range(most_runs):
        if done >= MIN_RUNS and time.perf_counter() - started > budget_seconds:
            break
        for place in range(len(runners)):
            index = (place + done) % len(runners)
            if warm[index].seconds < SHORT_SECONDS:
                runners[index].run(batch)
            before = time.perf_counter()
            runners[index].run(batch)
            seconds[index].append(time.perf_counter() - before)
        on_round(done + 1, most_runs)
    eager = _find(runners, "eager", "fp32")
    fp32 = _find(runners, "onnxruntime", "fp32")
    size = len(next(iter(batch.values())))
    rows = [
        summarize(runner, size, seconds[i], warm[i].peak_mb, _ratio(seconds, eager, i))
        for i, runner in enumerate(runners)
    ]
    return [
        replace(row, ratio_to_fp32=_ratio(seconds, fp32, i)) if row.precision != "fp32" else row
        for i, row in enumerate(rows)
    ]


def summarize(
    runner: Runner,
    batch: int,
    seconds: Sequence[float],
    peak_memory_mb: float,
    ratio_to_eager: float | None = None,
    *,
    timing: str = HOST_TO_HOST,
) -> Latency:
    """Compute percentiles of the times of repeated runs, given in seconds (pure)."""
    times = np.asarray(seconds) * 1e3
    low, high = median_interval(times)
    p50, p90, p95, p99 = np.percentile(times, [50, 90, 95, 99])
    return Latency(
        runtime=runner.name,
        device=runner.device,
        precision=runner.precision,
        batch=batch,
        p50_ms=float(p50),
        p90_ms=float(p90),
        p95_ms=float(p95),
        p99_ms=float(p99),
        mean_ms=float(times.mean()),
        std_ms=float(times.std(ddof=1)) if times.size > 1 else 0.0,
        clips_per_s=float(batch * 1e3 / p50),
        runs=times.size,
        peak_memory_mb=peak_memory_mb,
        warmup_runs=WARMUP_RUNS,
        threads=runner.threads,
        transfers_included=runner.transfers_included and timing == HOST_TO_HOST,
        ratio_to_eager=ratio_to_eager,
        timing=timing,
        p50_low_ms=low,
        p50_high_ms=high,
        samples_ms=tuple(times.round(4).tolist()),
    )


def median_interval(times: np.ndarray) -> tuple[float, float]:
    """Bound the median of independent times with 95 % confidence, by two of the times in order.

    The number of times below the median is binomial; here its normal approximation is used.
    """
    ordered = np.sort(times)
    least = max(int(np.floor(0.5 * times.size - 0.98 * np.sqrt(times.size))), 0)
    return float(ordered[least]), float(ordered[times.size - 1 - least])


def _find(runners: Sequence[Runner], name: str, precision: str) -> int | None:
    found = (i for i, r in enumerate(runners) if (r.name, r.precision) == (name, precision))
    return next(found, None)


def _ratio(seconds: list[list[float]], base: int | None, index: int) -> float | None:
    """Median over rounds of the base's time divided by this runner's: above 1 it is faster."""
    if base is None or base == index:
        return None
    return float(np.median(np.asarray(seconds[base]) / np.asarray(seconds[index])))


class _Warm(NamedTuple):
    """The shortest run without timing, and the peak resident memory of the process in MiB."""

    seconds: float
    peak_mb: float


def _warm_up(runner: Runner, batch: Arrays) -> _Warm:
    reset_peak_memory()
    seconds = []
    for _ in range(WARMUP_RUNS):
        before = time.perf_counter()
        runner.run(batch)
        seconds.append(time.perf_counter() - before)
    return _Warm(min(seconds), peak_memory_mb())
