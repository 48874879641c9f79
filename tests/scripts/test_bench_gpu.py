"""Test scripts/gpu/bench_gpu.py: a whole run on a CPU, and the parts that need no GPU."""

import csv
import json
import sys
from collections import Counter
from dataclasses import fields

import pytest
import torch


@pytest.fixture(scope="module")
def bench_gpu(script):
    return script("bench_gpu")


@pytest.fixture(scope="module")
def timing(bench_gpu):
    return sys.modules["timing"]


@pytest.fixture
def tf32_kept():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def subject_of(bench_gpu, tmp_path, precision="fp32", mechanism="regular"):
    case = bench_gpu.Case(mechanism, 32, 2, precision)
    return bench_gpu.Subject(case, bench_gpu.QUICK, torch.device("cpu"), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch, compiling
def test_a_run_on_a_cpu_writes_json_and_csv(bench_gpu, timing, tmp_path, capsys, tf32_kept):
    out = tmp_path / "new" / "gpu.json"
    flags = ["--device", "cpu", "--quick", "--mechanisms", "fastformer", "--batches", "2"]
    assert bench_gpu.main([*flags, "--precisions", "fp32", "bf16", "--out", str(out)]) == 0

    content = json.loads(out.read_text())
    rows = {(row["precision"], row["runtime"]): row for row in content["rows"]}
    asked = {*bench_gpu.RUNTIMES, timing.COPY}
    assert set(rows) == {(p, name) for p in ("fp32", "bf16") for name in asked}
    timed = [row for row in content["rows"] if row["status"] == "timed"]
    for row in timed:
        assert 0 < row["p10_ms"] <= row["p50_ms"] <= row["p90_ms"]
        assert row["clips_per_s"] == pytest.approx(2e3 / row["p50_ms"])
        assert row["runs"] == timing.MIN_ROUNDS
    for row in content["rows"]:
        assert (row["status"] == "timed") is (row["p50_ms"] is not None)
        assert row["status"] == "timed" or row["reason"]
    for name in (timing.PUBLISHED, "eager", "torch.compile", "onnxruntime"):
        assert rows["fp32", name]["status"] == "timed"
        assert rows["fp32", name]["rel_l2"] < 1e-5
    assert 1e-5 < rows["bf16", "eager"]["rel_l2"] < 0.1
    assert rows["fp32", timing.PUBLISHED]["speedup"] == 1.0
    assert rows["fp32", timing.COPY]["speedup"] is None
    assert rows["fp32", "eager, CUDA graph"]["reason"] == "needs a CUDA device"
    facts = content["environment"]
    assert {"date", "device", "commit", "packages", "threads"} <= set(facts)

    with out.with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    assert [name for name in lines[0] if name not in {"date", "device", "commit"}] == [
        field.name for field in fields(bench_gpu.Row)
    ]
    said = capsys.readouterr().out
    for status, count in Counter(row["status"] for row in content["rows"]).items():
        assert f"{count} {status}" in said


def test_after_the_time_limit_every_row_is_left_out(bench_gpu, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    flags = ["--device", "cpu", "--quick", "--time-limit", "0", "--out", str(out)]
    assert bench_gpu.main(flags) == 1

    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 3 * 2 * 4 * len(bench_gpu.RUNTIMES)
    assert {(row["status"], row["reason"]) for row in rows} == {("left out", "time limit of 0 s")}
    assert f"{len(rows)} left out" in capsys.readouterr().out


def test_a_runtime_slower_than_the_time_left_is_left_out(bench_gpu, timing, tmp_path, tf32_kept):
    deadline = bench_gpu.Deadline(100.0)
    deadline.note("torch.compile", 1000.0)
    deadline.note("eager", 0.1)
    with torch.no_grad():
        rows = bench_gpu.measure(
            subject_of(bench_gpu, tmp_path), ["eager", "torch.compile"], deadline
        )
    status = {row.runtime: row.status for row in rows}
    assert status == {"eager": "timed", timing.COPY: "timed", "torch.compile": "left out"}


def test_a_runtime_that_fails_is_a_row_with_the_reason(
    bench_gpu, timing, tmp_path, monkeypatch, tf32_kept
):
    def explode(_subject):
        raise RuntimeError("no\n  memory")

    def missing(_subject):
        raise timing.UnavailableError("not here")

    def not_a_number(subject):
        return lambda: torch.full((2, 2), torch.nan)

    runtimes = {"bad": explode, "absent": missing, "nan": not_a_number}
    monkeypatch.setattr(timing, "RUNTIMES", runtimes)
    with torch.no_grad():
        rows = bench_gpu.measure(
            subject_of(bench_gpu, tmp_path), list(runtimes), bench_gpu.Deadline(100.0)
        )
    said = {row.runtime: (row.status, row.reason) for row in rows}
    assert said["bad"] == ("failed", "RuntimeError: no memory")
    assert said["absent"] == ("missing", "not here")
    assert said["nan"] == ("timed", "the logits are not finite")
    assert all(row.rel_l2 is None for row in rows)


def test_a_case_that_fails_does_not_end_the_run(bench_gpu, monkeypatch):
    def explode(*_):
        raise MemoryError("too large")

    monkeypatch.setattr(bench_gpu, "Subject", explode)
    cases = [bench_gpu.Case("regular", 32, 1, precision) for precision in ("fp32", "fp16")]
    made = bench_gpu.measure_all(
        cases, ["eager"], bench_gpu.QUICK, torch.device("cpu"), bench_gpu.Deadline(100.0)
    )
    assert [row.reason for rows in made for row in rows] == ["MemoryError: too large"] * 2


def test_the_order_of_runtimes_rotates(bench_gpu, timing, tmp_path):
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    subject = subject_of(bench_gpu, tmp_path)
    seconds = timing.time_rounds(runs, subject, bench_gpu.Deadline(100.0))
    assert order[:9] == list("abcbcacab")
    assert {name: len(taken) for name, taken in seconds.items()} == dict.fromkeys("abc", 5)


def test_known_times_give_known_figures(timing):
    seconds = [0.001 * (1 + i) for i in range(11)]
    figures = timing.summarize(seconds, 4, [2 * second for second in seconds])
    assert figures == pytest.approx(
        {
            "p10_ms": 2.0,
            "p50_ms": 6.0,
            "p90_ms": 10.0,
            "clips_per_s": 4 / 0.006,
            "runs": 11,
            "speedup": 2.0,
        }
    )


@pytest.mark.parametrize("mechanism", ["regular", "performer", "fastformer"])
def test_a_typed_model_has_the_types_of_an_export(bench_gpu, tmp_path, mechanism):
    subject = subject_of(bench_gpu, tmp_path, "bf16", mechanism)
    model = subject.typed_model()
    kinds = {type(m).__name__: m.weight.dtype for m in model.modules() if hasattr(m, "weight")}
    assert kinds["RoundedLinear"] == torch.bfloat16
    assert kinds["LayerNorm"] == torch.float32
    with torch.no_grad():
        assert model(subject.video).dtype == torch.float32
        assert subject.truth("paper").dtype == torch.float64


@pytest.mark.parametrize(
    ("precision", "tf32"), [("fp32", False), ("tf32", True), ("fp16", False), ("bf16", False)]
)
def test_tf32_is_on_only_for_precision_tf32(bench_gpu, tmp_path, tf32_kept, precision, tf32):
    bench_gpu.measure(subject_of(bench_gpu, tmp_path, precision), [], bench_gpu.Deadline(100.0))
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32


def test_without_a_gpu_the_error_names_the_cpu_flags(bench_gpu, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_gpu.main([]) == 2
    assert "--device cpu --quick" in capsys.readouterr().err
