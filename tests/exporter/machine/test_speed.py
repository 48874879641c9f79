"""Test the speed measurements for correctness, not for the speed of this machine."""

import itertools
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from exporter.errors import RuntimeFailure
from exporter.graph.cost import GraphCost, MatmulShape
from exporter.machine import speed
from exporter.machine.speed import (
    MIN_RUNS,
    MachineLimit,
    limit_seconds,
    measure_copy_bandwidth,
    measure_gemm,
    measure_machine,
    of_limit,
)

SQUARE, MANY = MatmulShape(1, 64, 64, 64), MatmulShape(5, 8, 16, 24)
LIMIT = MachineLimit(gemm_flops_per_s=2e9, copy_bytes_per_s=1e9, threads=2)
COST = GraphCost(
    flops=9_000_000_000,
    matmul_flops=8_000_000_000,
    bytes=10**12,
    weight_bytes=10**11,
    by_op={"MatMul": 8_000_000_000, "Add": 1_000_000_000},
)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed, "COPIED_BYTES", 2**16)


def test_the_limit_counts_the_matrix_products_alone():
    assert limit_seconds(COST, LIMIT) == pytest.approx(4.0)
    assert of_limit(COST, LIMIT, 4.0) == pytest.approx(1.0)
    assert of_limit(COST, LIMIT, 16.0) == pytest.approx(0.25)


def test_measured_rates_are_positive_and_finite(small):
    limit = measure_machine(Counter({SQUARE: 3, MANY: 2}), 2, seconds=0.05)
    assert limit.threads == 2
    assert 0 < limit.gemm_flops_per_s < np.inf
    assert 0 < limit.copy_bytes_per_s < np.inf


def test_the_rate_covers_all_products_in_sequence(monkeypatch):
    seconds = {SQUARE: 0.5, MANY: 0.25}
    monkeypatch.setattr(speed, "_in_onnxruntime", lambda shape, _threads: shape)
    monkeypatch.setattr(speed, "median_seconds", lambda shape, _budget: seconds[shape])
    rate = measure_gemm(Counter({SQUARE: 3, MANY: 2}), 1)
    flops = 3 * SQUARE.flops + 2 * MANY.flops
    assert rate == pytest.approx(flops / (3 * 0.5 + 2 * 0.25))


def test_the_budget_is_divided_by_operations(monkeypatch):
    budgets = {}
    monkeypatch.setattr(speed, "_in_onnxruntime", lambda shape, _threads: shape)
    monkeypatch.setattr(
        speed, "median_seconds", lambda shape, budget: budgets.setdefault(shape, budget)
    )
    tiny = MatmulShape(1, 1, 8, 8)
    measure_gemm(Counter({SQUARE: 3, MANY: 2, tiny: 1}), 1, seconds=2.0)
    assert budgets[SQUARE] / budgets[MANY] == pytest.approx(3 * SQUARE.flops / (2 * MANY.flops))
    assert sum(budgets.values()) == pytest.approx(2.0, rel=0.01)
    assert tiny not in budgets  # less than a thousandth of the operations


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((1, 64, 64, 64), (1, 64, 64, 64)),
        ((1, 2**20, 2**8, 2**8), (1, 2**13, 2**8, 2**8)),
        ((2**10, 2**8, 2**8, 2**8), (2**5, 2**8, 2**8, 2**8)),
        ((2, 1, 2**16, 2**16), (1, 1, 2**16, 2**16)),
    ],
)
def test_large_products_are_timed_in_part(shape, part):
    assert speed._part(MatmulShape(*shape)) == part


@pytest.mark.parametrize("shape", [SQUARE, MANY, MatmulShape(1, 7, 3, 1)])
def test_the_measured_graph_computes_the_product(shape):
    left = np.random.default_rng(0).normal(size=(shape.batch, shape.m, shape.k))
    session = onnxruntime.InferenceSession(speed.matmul_model(shape).SerializeToString())
    made = np.asarray(session.run(None, {"left": left.astype(np.float32)})[0])
    assert made.shape == (shape.batch, shape.m, shape.n)
    np.testing.assert_allclose(made[..., 0], left.sum(-1), rtol=1e-4, atol=1e-4)


def test_every_byte_is_copied_and_counts_twice(small, monkeypatch):
    copied = []
    monkeypatch.setattr(
        speed.np, "copyto", lambda target, source: copied.append((target.size, source.size))
    )
    monkeypatch.setattr(speed, "median_seconds", lambda run, _budget: run() and 0.5)
    assert measure_copy_bandwidth(3) == 2 * 2**16 / 0.5
    assert sum(target for target, _ in copied) == 2**16
    assert all(target == source for target, source in copied)
    assert len(copied) == 3


def test_a_median_has_at_least_the_minimum_of_runs(monkeypatch):
    moments = itertools.count(0, 10)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    runs = []
    assert speed.median_seconds(lambda: runs.append(1), budget=0.0) == 10
    assert len(runs) == MIN_RUNS + 1  # plus the first run, which is not timed


def test_measuring_without_products_is_an_error():
    with pytest.raises(RuntimeFailure, match="no matrix products"):
        measure_gemm(Counter(), 1)


def test_without_onnxruntime_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeFailure, match="ONNX Runtime cannot be imported"):
        measure_gemm(Counter({SQUARE: 1}), 1)
