"""Test scripts/gpu/bench_gpu.py: a whole dry run, the time limit, and the page."""

import json
import sys
import time
from collections import Counter

import pytest
import torch


@pytest.fixture(scope="module")
def bench_gpu(script):
    return script("bench_gpu")


@pytest.fixture(scope="module")
def steps(bench_gpu):
    return sys.modules["steps"]


@pytest.fixture
def tf32_kept():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


LATENCY = {
    "runtime": "onnxruntime",
    "device": "cpu",
    "precision": "fp32",
    "p50_ms": 2.0,
    "p90_ms": 3.0,
    "p99_ms": 4.0,
    "clips_per_s": 500.0,
    "runs": 10,
    "samples_ms": [2.0, 2.0],
}
MISSED = {"runtime": "tensorrt_rtx", "device": "none", "batch": 1, "reason": "no | GPU"}


@pytest.fixture
def commands(monkeypatch, steps):
    """Run `export` and `verify` for real; stand in for `build` and `bench`."""
    run, real = [], steps.main

    def main(words):
        run.append(words)
        if words[0] == "build":
            return 0
        if words[0] == "bench":
            batches = words[words.index("--batch") + 1].split(",")
            rows = [LATENCY | {"batch": int(batch)} for batch in batches]
            sys.stdout.write(json.dumps({"latency": rows, "not_timed": [MISSED]}))
            return 0
        return real(words)

    monkeypatch.setattr(steps, "main", main)
    return run


@pytest.mark.slow
@pytest.mark.usefixtures("quick_exports")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch, compiling
def test_a_dry_run_writes_json_and_a_page(
    bench_gpu, commands, tmp_path, capsys, monkeypatch, tf32_kept
):
    out = tmp_path / "new" / "gpu.json"
    flags = ["--dry", "--mechanisms", "fastformer", "--precisions", "fp32"]
    flags = [str(tmp_path / "exports"), *flags, "--seconds", "0", "--out", str(out)]
    assert bench_gpu.main(flags) == 0

    content = json.loads(out.read_text())
    done = [(step["cell"], step["step"]) for step in content["steps"] if step["status"] == "done"]
    assert done == [
        *(("fastformer-32-fp32", name) for name in ("export", "build", "verify", "bench")),
        *((f"fastformer-32-fp32, batch {n}", "peers") for n in (1, 2)),
    ]
    rows = {(row["runtime"], row["batch"]): row for row in content["rows"]}
    peers = ("published", "eager", "torch.compile")
    assert set(rows) == {(name, n) for name in ("onnxruntime", *peers) for n in (1, 2)}
    ours = rows["onnxruntime", 2]
    assert (ours["verdict"], ours["p50_ms"]) == ("pass", 2.0)
    assert ours["rel_l2"] < 1e-5
    assert "samples_ms" not in ours
    eager = rows["eager", 1]
    assert 0 < eager["rel_l2"] < 1e-5
    assert 0 < eager["p50_ms"] <= eager["p99_ms"]
    assert eager["clips_per_s"] == pytest.approx(1e3 / eager["p50_ms"])
    reasons = {row["runtime"]: row["reason"] for row in content["not_timed"]}
    assert reasons == {
        "tensorrt_rtx": "no | GPU",
        "torch.compile, CUDA graph": "needs a CUDA device",
    }
    assert {"gpu", "cuda", "date", "packages"} <= set(content["environment"])

    page = out.with_suffix(".md").read_text()
    assert "| fastformer-32-fp32 | 2 | onnxruntime (cpu) | host to host | 2.000 | 4.000 |" in page
    assert "no / GPU" in page
    assert f"{len(content['steps'])} steps done" in capsys.readouterr().out
    assert ["build", str(tmp_path / "exports" / "fastformer-32-fp32"), "--force"] in commands

    commands.clear()  # the export is there
    monkeypatch.setattr(bench_gpu.importlib.util, "find_spec", lambda name: None)  # no torch
    assert bench_gpu.main(flags) == 0
    assert [words[0] for words in commands] == ["build", "verify", "bench"]


def test_the_cells_come_in_the_order_of_their_cost(bench_gpu):
    found = bench_gpu.cells(bench_gpu.FULL)
    assert len(found) == 2 * 4 * 3
    assert [cell.resolution for cell in found] == [224] * 12 + [512] * 12
    assert found[0].name == "fastformer-224-fp16"
    assert found[-1].name == "performer-512-int8"


def test_after_the_time_limit_every_step_is_left_out(bench_gpu, commands, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    flags = [str(tmp_path), "--dry", "--time-limit", "0", "--out", str(out)]
    assert bench_gpu.main(flags) == 1
    found = json.loads(out.read_text())["steps"]
    assert {(step["status"], step["reason"]) for step in found} == {
        ("left out", "time limit of 0 s")
    }
    assert commands == []
    assert f"{len(found)} steps left out" in capsys.readouterr().out


def test_a_step_that_runs_into_the_limit_is_interrupted(steps, monkeypatch):
    def busy(_words):
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            return 130  # as the command does
        return 0

    monkeypatch.setattr(steps, "main", busy)
    budget = steps.Budget(0.3)
    step = steps.run_command(budget, "cell", 1, ["build", "x"])
    assert (step.status, step.reason) == ("left out", "time limit of 0.3 s")
    assert step.seconds < 5


def test_ctrl_c_ends_the_run(steps):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.run_step(steps.Budget(100.0), "cell", "build", 1, interrupt)


def test_a_step_that_would_take_longer_than_is_left_is_left_out(steps):
    budget = steps.Budget(100.0)
    budget.note("build", 224**2, 30.0)
    ran = []

    def work():
        ran.append(1)
        return "done", "", {}

    assert steps.run_step(budget, "cell", "build", 512**2, work).status == "left out"
    assert steps.run_step(budget, "cell", "build", 224**2, work).status == "done"
    assert steps.run_step(budget, "cell", "verify", 512**2, work).status == "done"
    assert len(ran) == 2


def test_a_step_that_fails_has_its_reason(steps, monkeypatch):
    def main(words):
        if words[0] == "verify":
            sys.stdout.write(json.dumps({"parity": []}))
            return 5
        sys.stderr.write("tsformer: engine: no\n  memory\n")
        return 4

    monkeypatch.setattr(steps, "main", main)
    budget = steps.Budget(100.0)
    step = steps.run_command(budget, "cell", 1, ["build", "x"])
    assert (step.status, step.reason) == ("failed", "tsformer: engine: no memory")
    step = steps.run_command(budget, "cell", 1, ["verify", "x", "--json"])
    assert (step.status, step.found) == ("done", {"parity": []})  # a verdict is a result

    def explode():
        raise MemoryError("too\nlarge")

    step = steps.run_step(budget, "cell", "peers", 1, explode)
    assert (step.status, step.reason) == ("failed", "MemoryError: too large")


def test_without_torch_an_export_must_be_prepared(bench_gpu, commands, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu.importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "gpu.json"
    flags = ["--mechanisms", "regular", "--precisions", "fp32", "--out", str(out)]
    assert bench_gpu.main([str(tmp_path), "--dry", *flags]) == 1
    (step,) = json.loads(out.read_text())["steps"]
    assert (step["step"], step["status"]) == ("export", "failed")
    assert "--prepare" in step["reason"]
    assert bench_gpu.main([str(tmp_path), "--dry", "--prepare", *flags]) == 1


@pytest.mark.parametrize("mechanism", ["regular", "performer", "fastformer"])
def test_a_peer_has_the_types_of_an_export(bench_gpu, script, mechanism):
    peers = script("peers")
    cell = bench_gpu.Cell(mechanism, 32, "bf16")
    subject = peers.Subject(cell, bench_gpu.DRY, 2, torch.device("cpu"))
    model = subject.typed_model("paper")
    kinds = {type(m).__name__: m.weight.dtype for m in model.modules() if hasattr(m, "weight")}
    assert kinds["RoundedLinear"] == torch.bfloat16
    assert kinds["LayerNorm"] == torch.float32
    with torch.no_grad():
        assert model(subject.video).dtype == torch.float32
        assert subject.truth("paper").dtype == torch.float64


def test_a_peer_that_fails_is_a_row_with_the_reason(bench_gpu, script, monkeypatch, tf32_kept):
    peers = script("peers")

    def explode(_subject, _semantics):
        raise RuntimeError("no\n  compiler")

    table = {"eager": peers.PEERS["eager"], "bad": (explode, "paper", False)}
    monkeypatch.setattr(peers, "PEERS", table)
    cell = bench_gpu.Cell("regular", 32, "fp32")
    status, _, found = peers.time_peers(cell, bench_gpu.DRY, 1, 0.0)
    assert status == "done"
    assert Counter(row["runtime"] for row in found["latency"]) == {"eager": 1}
    assert found["latency"][0]["rel_l2"] < 1e-5
    assert [row["reason"] for row in found["not_timed"]] == ["RuntimeError: no compiler"]
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_without_a_gpu_the_error_names_the_dry_run(bench_gpu, capsys, without_gpu):
    assert bench_gpu.main([]) == 2
    assert "this machine has no NVIDIA GPU; --dry" in capsys.readouterr().err


@pytest.fixture
def without_gpu(monkeypatch, bench_gpu):
    status = bench_gpu.look_for_gpu().__class__(
        None, seen=False, reason="this machine has no NVIDIA GPU"
    )
    monkeypatch.setattr(bench_gpu, "look_for_gpu", lambda: status)
