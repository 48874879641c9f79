"""Test latency on a fake clock: the figures, the order of runs and their number."""

from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest

from exporter.latency import bench as bench_module
from exporter.latency.bench import (
    MAX_RUNS,
    MIN_RUNS,
    WARMUP_RUNS,
    bench,
    median_interval,
    summarize,
)

VIDEO = np.zeros((4, 2, 3, 8, 8), np.float32)
BATCH = {"video": VIDEO}


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Sleeper:
    """A runner whose runs take the given seconds, in sequence, on the fake clock."""

    device, precision, transfers_included = "cpu", "fp32", True

    def __init__(self, clock, name, seconds, log=None, threads=2, warm=50.0):
        self.warm = warm
        self.clock, self.name, self.threads = clock, name, threads
        self.seconds = cycle(np.atleast_1d(seconds))
        self.log = [] if log is None else log
        self.runs = 0

    def run(self, inputs):
        assert inputs["video"] is VIDEO
        self.runs += 1
        self.log.append(self.name)
        # The warm-up runs are slow. No figure may contain their time.
        self.clock.now += self.warm if self.runs <= WARMUP_RUNS else float(next(self.seconds))
        return {"logits": np.zeros((4, 2))}


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench_module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_steady_runners_give_exact_figures(clock):
    eager, other = Sleeper(clock, "eager", 0.2), Sleeper(clock, "onnxruntime", 0.05, threads=3)
    slow, fast = bench([eager, other], BATCH, budget_seconds=0)
    for row, expected in ((slow, 200.0), (fast, 50.0)):
        for figure in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms"):
            assert getattr(row, figure) == pytest.approx(expected)
        assert row.std_ms == pytest.approx(0, abs=1e-9)
        assert row.batch == 4
        assert row.warmup_runs == WARMUP_RUNS
        assert row.transfers_included
        assert row.peak_memory_mb > 0
    assert (slow.runtime, fast.runtime) == ("eager", "onnxruntime")
    assert (slow.threads, fast.threads) == (2, 3)
    assert slow.clips_per_s == pytest.approx(4 / 0.2)
    assert fast.clips_per_s == pytest.approx(4 / 0.05)
    assert slow.ratio_to_eager is None
    assert fast.ratio_to_eager == pytest.approx(4.0)


def test_percentiles_of_known_times():
    runner = SimpleNamespace(
        name="r", device="cpu", precision="fp32", threads=1, transfers_included=False
    )
    seconds = np.random.default_rng(0).permutation(np.arange(1, 101)) / 1e3  # 1 to 100 ms
    row = summarize(runner, 2, seconds, 12.5, None)
    assert row.p50_ms == pytest.approx(50.5)
    assert row.p90_ms == pytest.approx(90.1)
    assert row.p95_ms == pytest.approx(95.05)
    assert row.p99_ms == pytest.approx(99.01)
    assert row.mean_ms == pytest.approx(50.5)
    assert row.std_ms == pytest.approx(29.0115, rel=1e-5)  # the sample standard deviation
    assert row.clips_per_s == pytest.approx(2 / 0.0505)
    assert (row.runs, row.peak_memory_mb, row.transfers_included) == (100, 12.5, False)


@pytest.mark.parametrize(
    ("count", "low", "high"), [(100, 41, 60), (10, 2, 9), (3, 1, 3), (1, 1, 1)]
)
def test_the_interval_of_the_median_is_two_of_the_runs(count, low, high):
    times = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert median_interval(times) == (low, high)


def test_the_interval_holds_the_median_in_95_of_100_cases():
    draws = np.random.default_rng(0).exponential(size=(2000, 40))
    bounds = np.array([median_interval(times) for times in draws])
    held = np.mean((bounds[:, 0] <= np.log(2)) & (np.log(2) <= bounds[:, 1]))
    assert 0.93 < held < 0.98


def test_a_single_run_has_no_spread():
    runner = SimpleNamespace(
        name="r", device="cpu", precision="fp32", threads=1, transfers_included=True
    )
    row = summarize(runner, 1, [0.004], 1.0, None)
    assert row.p50_ms == row.p99_ms == pytest.approx(4.0)
    assert row.std_ms == 0.0


def test_the_ratio_is_the_median_over_rounds_not_the_ratio_of_medians(clock):
    eager = Sleeper(clock, "eager", [2.0, 8.0, 2.0])
    other = Sleeper(clock, "onnxruntime", [1.0, 1.0, 4.0])
    *_, row = bench([eager, other], BATCH, budget_seconds=0)
    rounds = [2.0, 8.0, 0.5, 2.0, 8.0, 0.5, 2.0, 8.0, 0.5, 2.0]
    assert row.ratio_to_eager == pytest.approx(np.median(rounds)) == 2.0


def test_without_eager_there_is_no_ratio(clock):
    rows = bench([Sleeper(clock, "onnxruntime", 1.0)] * 2, BATCH, budget_seconds=0)
    assert [row.ratio_to_eager for row in rows] == [None, None]


def test_the_first_runner_of_a_round_rotates(clock):
    log = []
    runners = [Sleeper(clock, name, 1.0, log) for name in ("eager", "b", "c")]
    bench(runners, BATCH, budget_seconds=0)
    warm, timed = log[: 3 * WARMUP_RUNS], log[3 * WARMUP_RUNS :]
    assert warm == ["eager"] * WARMUP_RUNS + ["b"] * WARMUP_RUNS + ["c"] * WARMUP_RUNS
    rounds = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    turns = [["eager", "b", "c"], ["b", "c", "eager"], ["c", "eager", "b"]]
    assert rounds == [turns[i % 3] for i in range(MIN_RUNS)]


def test_a_short_run_is_timed_after_a_run_of_the_same_runner(clock):
    log = []
    short = Sleeper(clock, "short", [3.0, 1.0], log, warm=0.01)
    long = Sleeper(clock, "long", 2.0, log, warm=0.03)
    rows = bench([short, long], BATCH, budget_seconds=0)
    timed = log[2 * WARMUP_RUNS :]
    assert timed[:6] == ["short", "short", "long", "long", "short", "short"]
    assert [row.mean_ms for row in rows] == pytest.approx([1000, 2000])


def test_times_are_assigned_to_their_own_runner(clock):
    rows = bench(
        [Sleeper(clock, name, s) for name, s in (("eager", 1.0), ("b", 2.0), ("c", 3.0))],
        BATCH,
        budget_seconds=0,
    )
    assert [row.mean_ms for row in rows] == pytest.approx([1000, 2000, 3000])


@pytest.mark.parametrize(
    ("seconds", "budget", "rounds"),
    [
        (1.0, 0.0, MIN_RUNS),
        (1000.0, 20.0, MIN_RUNS),
        (1.0, 20.0, 21),  # 20 rounds use up the budget but do not exceed it
        (1.0, 19.5, 20),
        (0.001, 20.0, MAX_RUNS),
    ],
)
def test_the_budget_decides_the_number_of_rounds(clock, seconds, budget, rounds):
    (row,) = bench([Sleeper(clock, "eager", seconds)], BATCH, budget_seconds=budget)
    assert row.runs == rounds


def test_the_budget_does_not_count_the_warm_up(clock):
    rows = bench([Sleeper(clock, "eager", 1.0)], BATCH, budget_seconds=14.5)
    assert rows[0].runs == 15


def test_every_round_is_reported(clock):
    told = []
    bench(
        [Sleeper(clock, "eager", 1.0)], BATCH, budget_seconds=0, on_round=lambda *x: told.append(x)
    )
    assert told == [(i + 1, MAX_RUNS) for i in range(MIN_RUNS)]


def test_a_failing_runner_fails_the_bench(clock):
    class Broken(Sleeper):
        def run(self, inputs):
            raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError, match="no more memory"):
        bench([Sleeper(clock, "eager", 1.0), Broken(clock, "b", 1.0)], BATCH, budget_seconds=0)
