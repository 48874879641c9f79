import time
from contextlib import ExitStack

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporter.errors import RuntimeFailure
from exporter.results import Parity
from exporter.runners import open as opening
from exporter.runners.cuda import Gpu, GpuStatus
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.runners.open import FOR_PROOF_ONLY, Opened, load_engine, load_graphs, load_onnx


class StandIn:
    name = "stand-in"


ROW = Parity("onnxruntime", "cuda", "fp16", "not-run", reason="no device")


def test_runners_and_absences_add_up_in_order():
    first, second = StandIn(), StandIn()
    both = Opened((first,)) + Opened((second,), (ROW,))
    assert both == Opened((first, second), (ROW,))


def test_a_graph_runner_is_not_an_engine():
    assert not Opened((StandIn(),)).has_engine


@pytest.mark.parametrize(
    ("precision", "names"),
    [
        ("fp32", ["onnxruntime", "onnxruntime-tensorrt"]),
        (
            "fp16",
            ["onnxruntime", "onnx-reference", "onnx-reference-tensorrt", "onnxruntime-tensorrt"],
        ),
    ],
)
def test_the_graph_of_the_engine_is_opened_for_the_proof(tmp_path, attention, precision, names):
    path = tmp_path / "model.onnx"
    onnx.save(attention(TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT), path)
    with ExitStack() as resources:
        opened = load_graphs(path, path, precision, resources, threads=1)
        assert [runner.name for runner in opened.runners] == names
        assert "onnx-reference-tensorrt" not in {one.name for one in opened.for_accuracy}
    with ExitStack() as resources:
        alone = load_graphs(path, None, precision, resources, threads=1)
        assert [runner.name for runner in alone.runners] == names[: len(names) // 2]
    assert set(names[1:]) <= set(FOR_PROOF_ONLY)


@pytest.fixture
def damaged(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    return path


def test_a_float32_graph_that_does_not_load_is_an_error(damaged):
    with ExitStack() as resources, pytest.raises(RuntimeFailure, match=r"load model\.onnx"):
        load_onnx(damaged, "fp32", resources, threads=1)


def test_a_graph_of_lower_precision_that_does_not_load_is_an_absence(damaged):
    with ExitStack() as resources:
        opened = load_onnx(damaged, "int8", resources, threads=1)
    assert opened.runners == ()
    assert {row.verdict for row in opened.absences} == {"not-run"}
    assert "does not load model.onnx" in opened.absences[0].reason


def test_an_export_without_an_engine_has_no_absence(tmp_path):
    with ExitStack() as resources:
        assert load_engine(None, tmp_path / "model.engine", "fp32", resources) == Opened()


def test_an_engine_without_a_gpu_is_an_absence(tmp_path, without_gpu):
    with ExitStack() as resources:
        opened = load_engine("tensorrt_rtx", tmp_path / "model.engine", "fp16", resources)
    (row,) = opened.absences
    assert (row.runtime, row.device, row.precision, row.verdict) == (
        "tensorrt_rtx",
        "none",
        "fp16",
        "not-run",
    )
    assert "no NVIDIA GPU" in row.reason
    assert not opened.has_engine


@pytest.fixture
def unusable(monkeypatch):
    """A machine whose GPU was seen and cannot be used."""
    status = GpuStatus(None, seen=True, reason="there is a GPU", remedy="install it")
    monkeypatch.setattr(opening, "look_for_gpu", lambda: status)
    monkeypatch.setattr(opening, "available_devices", lambda: ("cuda",))


def test_a_gpu_that_cannot_be_used_is_an_absence_with_its_remedy(tmp_path, unusable):
    path = tmp_path / "model.onnx"
    with ExitStack() as resources:
        opened = load_onnx(path, "fp32", resources, threads=1)
        opened += load_engine("tensorrt_rtx", tmp_path / "model.engine", "fp32", resources)
    assert opened.runners == ()
    assert {row.reason for row in opened.absences} == {"there is a GPU; install it"}
    assert [row.runtime for row in opened.absences] == ["onnxruntime", "tensorrt_rtx"]


def test_a_graph_that_a_gpu_does_not_load_is_an_absence(damaged, monkeypatch):
    """An export runs on the CPU then, and its report says why the GPU did not."""

    def fall_back(*_arguments, **_options):
        raise RuntimeFailure("ONNX Runtime fell back to another device for model.onnx")

    gpu = Gpu("A GPU", 1, "8.6", 24.0, None, "13.0", "13.0")
    monkeypatch.setattr(opening, "look_for_gpu", lambda: GpuStatus(gpu, seen=True))
    monkeypatch.setattr(opening, "available_devices", lambda: ("cuda",))
    monkeypatch.setattr(opening, "open_onnxruntime", fall_back)
    with ExitStack() as resources:
        (row,) = load_onnx(damaged, "fp32", resources, threads=1).absences
    assert (row.device, row.verdict) == ("cuda", "not-run")
    assert "fell back" in row.reason


def test_without_a_gpu_onnx_runtime_on_cuda_is_no_row(tmp_path, monkeypatch, without_gpu):
    monkeypatch.setattr(opening, "available_devices", lambda: ("cuda",))
    with ExitStack() as resources:
        assert load_onnx(tmp_path / "m.onnx", "fp32", resources, threads=1) == Opened()


def test_float32_is_not_asked_of_the_plugin(tmp_path, monkeypatch):
    gpu = Gpu("A GPU", 1, "8.6", 24.0, None, "13.0", "13.0")
    monkeypatch.setattr(opening, "look_for_gpu", lambda: GpuStatus(gpu, seen=True))
    monkeypatch.setattr(opening, "available_devices", lambda: ("tensorrt_rtx",))
    with ExitStack() as resources:
        opened = load_onnx(tmp_path / "model.onnx", "fp32", resources, threads=1)
    (row,) = opened.absences
    assert (row.runtime, row.device) == ("onnxruntime", "tensorrt_rtx")
    assert "TF32" in row.reason


def test_threads_of_onnx_runtime_sleep_between_runs(tmp_path):
    """Else they spin for 50 ms, and take a core from a decoder or from the next runtime."""
    values = helper.make_tensor_value_info("video", TensorProto.FLOAT, (1, 256, 256))
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 256, 256))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["video", "video"], ["logits"])], "g", [values], [made]
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    video = {"video": np.ones((1, 256, 256), np.float32)}
    with OnnxRuntimeRunner(model, threads=2) as runner:

        def cpu_seconds_after_a_run():
            runner.run(video)
            before = time.process_time()
            time.sleep(0.1)
            return time.process_time() - before

        assert min(cpu_seconds_after_a_run() for _ in range(5)) < 0.02
