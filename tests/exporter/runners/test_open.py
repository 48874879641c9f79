from contextlib import ExitStack

import pytest
import torch

from exporter.errors import RuntimeFailure
from exporter.results import Parity
from exporter.runners.open import Opened, load_engine, load_onnx


class StandIn:
    name = "stand-in"


ROW = Parity("onnxruntime", "cuda", "fp16", "not-run", reason="no device")


def test_runners_and_absences_add_up_in_order():
    first, second = StandIn(), StandIn()
    both = Opened((first,)) + Opened((second,), (ROW,))
    assert both == Opened((first, second), (ROW,))


def test_a_graph_runner_is_not_an_engine():
    assert not Opened((StandIn(),)).has_engine


@pytest.fixture
def damaged(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    return path


def test_a_float32_graph_that_does_not_load_is_an_error(damaged):
    with ExitStack() as resources, pytest.raises(RuntimeFailure, match=r"load model\.onnx"):
        load_onnx(damaged, "fp32", resources)


def test_a_graph_of_lower_precision_that_does_not_load_is_an_absence(damaged):
    with ExitStack() as resources:
        opened = load_onnx(damaged, "int8", resources)
    assert opened.runners == ()
    assert {row.verdict for row in opened.absences} == {"not-run"}
    assert "does not load model.onnx" in opened.absences[0].reason


def test_an_export_without_an_engine_has_no_absence(tmp_path):
    with ExitStack() as resources:
        assert load_engine(None, tmp_path / "model.engine", "fp32", resources) == Opened()


def test_an_engine_without_a_gpu_is_an_absence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
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
