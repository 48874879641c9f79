"""Test `bench`: every runtime of the machine, in the batches that it takes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from exporter import BatchProfile, ExportSpec, cli
from exporter.errors import RuntimeFailure, UsageError
from exporter.pipeline import export
from exporter.results import HOST_TO_HOST, Latency, Parity
from exporter.runners.device import OnDevice
from exporter.runners.open import Opened
from exporter.target import bench as bench_module
from exporter.target.bench import Benched, bench


class OnGpu(OnDevice):
    """Stands in for a runner on a GPU, which can time the device alone."""

    name, device, precision, threads, transfers_included = "tensorrt", "cuda:0", "fp32", 1, True

    def __init__(self, batch, graphs=True):
        self.input_shapes = {"video": (batch, 3, 3, 32, 48)}
        self.graphs = graphs

    def run(self, inputs):
        return {"logits": np.zeros((len(inputs["video"]), 2), np.float32)}

    def device_seconds(self, inputs, runs, *, graph):
        if graph and not self.graphs:
            raise RuntimeFailure("no graph was captured")
        return [0.001 if graph else 0.002] * runs


def put(monkeypatch, *runners, absences=()):
    opened = Opened(runners, absences)
    monkeypatch.setattr(bench_module, "open_runtimes", lambda *_, **__: opened)


def test_the_table_breaks_no_name_of_a_runtime(monkeypatch, capsys):
    names = ("onnxruntime", "tensorrt_rtx")
    rows = tuple(
        Latency(
            *(name, "cpu", "fp32", 16),
            *(0.177, 12.7, 20.0, 2120.0, 0.2, 0.1, 30200.0, 1000, 80.0, 3, 1, True),
            p50_low_ms=0.163,
            p50_high_ms=0.261,
        )
        for name in names
    )
    monkeypatch.setattr(bench_module, "bench", lambda *_, **__: Benched({}, rows, ()))
    assert cli.main(["bench", "x"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {line[0] for line in lines if line} >= {*names, "(cpu,"}
    assert all(len(" ".join(line)) <= 80 for line in lines)


@pytest.mark.slow
def test_it_times_what_runs_here_without_torch_and_onnx(exported):
    code = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = None
from exporter.cli import main
sys.exit(main(sys.argv[1:]))
"""
    directory = exported().directory
    command = [sys.executable, "-c", code, "bench", str(directory), "--seconds", "0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    (row,) = found["latency"]
    assert (row["runtime"], row["batch"], row["runs"]) == ("onnxruntime", 1, 10)
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert found["environment"]["cpu"]


def test_a_gpu_is_timed_with_and_without_copies_and_a_graph(exported, monkeypatch):
    put(monkeypatch, OnGpu(1))
    rows = bench(exported().directory, seconds=0).latency
    assert [row.timing for row in rows] == [HOST_TO_HOST, "device only", "device only, CUDA graph"]
    assert [row.transfers_included for row in rows] == [True, False, False]
    assert [row.p50_ms for row in rows[1:]] == [2.0, 1.0]


def test_a_graph_that_cannot_be_captured_is_a_row_with_its_reason(exported, monkeypatch):
    put(monkeypatch, OnGpu(1, graphs=False))
    found = bench(exported().directory, seconds=0)
    assert [row.timing for row in found.latency] == [HOST_TO_HOST, "device only"]
    (missed,) = found.not_timed
    assert missed.reason == "device only, CUDA graph: no graph was captured"


def test_a_batch_that_one_runtime_takes_is_a_row_of_the_other(exported, monkeypatch):
    put(monkeypatch, OnGpu(1), OnGpu(4))
    found = bench(exported().directory, batches=(4,), seconds=0)
    assert {row.batch for row in found.latency} == {4}
    (missed,) = found.not_timed
    assert missed.reason.startswith("its batch is 1; export with --dynamic-batch")


def test_a_batch_that_nothing_takes_is_a_usage_error(exported):
    with pytest.raises(UsageError, match="--batch 4 is not taken: its batch is 1"):
        bench(exported().directory, batches=(4,), seconds=0)


def test_nothing_to_run_is_an_error_with_the_reasons(exported, monkeypatch):
    put(monkeypatch, absences=(Parity("tensorrt", "none", "fp32", "not-run", reason="no GPU"),))
    with pytest.raises(RuntimeFailure, match=r"nothing of .* can be run here: tensorrt: no GPU"):
        bench(exported().directory, seconds=0)


@pytest.mark.slow
def test_every_batch_of_a_free_batch_is_timed(tiny, tmp_path):
    spec = ExportSpec(**tiny, dynamic_batch=BatchProfile(1, 2, 4))
    directory = export(spec, tmp_path / "free").directory
    found = bench(directory, batches=(1, 4), seconds=0)
    assert [row.batch for row in found.latency] == [1, 4]
    assert [row.batch for row in bench(directory, seconds=0).latency] == [2]
    with pytest.raises(UsageError, match="its batch is 1 to 4"):
        bench(directory, batches=(5,), seconds=0)


class TestRecord:
    @pytest.fixture
    def directory(self, exported, tmp_path):
        return shutil.copytree(exported().directory, tmp_path / "mine")

    def test_verify_and_bench_record_beside_the_export(self, directory, capsys):
        before = {path: path.read_bytes() for path in directory.iterdir()}
        how = ("--record", "--name", "orin")
        assert cli.main(["verify", str(directory), *how]) == 0
        assert cli.main(["bench", str(directory), "--seconds", "0", *how]) == 0
        assert capsys.readouterr().err.count("recorded in") == 2
        facts = json.loads((directory / "machines" / "orin.json").read_text())
        assert facts["machine"] == "orin"
        assert facts["runs"] == {"onnxruntime": "model.onnx", "structure": "model.onnx"}
        assert [row["verdict"] for row in facts["parity"]] == ["pass", "pass"]
        assert len(facts["latency"]) == 1
        assert {path: path.read_bytes() for path in before} == before
        page = (directory / "machines" / "index.html").read_text()
        assert "Parity of orin" in page
        assert "Latency of orin" in page
        assert cli.main(["verify", str(directory)]) == 0  # the record changes no proof
        capsys.readouterr()

        assert cli.main(["inspect", str(directory)]) == 0
        assert "orin: onnxruntime (cpu): pass, p50" in capsys.readouterr().out

    def test_advise_reads_what_a_machine_recorded(self, directory, capsys):
        for command in (["verify"], ["bench", "--seconds", "0"]):
            cli.main([command[0], str(directory), *command[1:], "--record", "--name", "orin"])
        capsys.readouterr()
        assert cli.main(["advise", str(directory), "--machine", "orin", "--json"]) == 0
        pick = json.loads(capsys.readouterr().out)["pick"]
        assert pick["cell"] == {"export": "mine", "machine": "orin"}
        (directory / "report.json").unlink()  # an edge image
        assert cli.main(["advise", str(directory), "--json"]) == 0
        capsys.readouterr()
        assert cli.main(["advise", str(directory), "--machine", "xavier"]) == 2
        assert "expected one of orin" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["verify", "--name", "x"], "--name is the name of a record; add --record"),
            (["bench", "--record", "--name", "../x"], "--name: got '../x'"),
            (["bench", "--batch", "1,x"], "expected whole numbers above 0"),
            (["bench", "--seconds", "-1"], "--seconds: got -1.0"),
            (["bench", "--seconds", "1e99"], "--seconds: got 1e+99, expected 0 to 86,400 seconds"),
            (["bench", "--batch", "3"], "--batch 3 is not taken"),
        ],
    )
    def test_a_wrong_option_is_one_line(self, directory, capsys, arguments, said):
        command, *options = arguments
        assert cli.main([command, str(directory), *options]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert said in err
