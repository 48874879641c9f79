import json
import os
import platform
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from exporter.errors import RuntimeFailure
from exporter.errors.install import how_to_install
from exporter.machine import environment
from exporter.machine.environment import describe, examine
from exporter.runners.cuda import Gpu, GpuStatus, gpu_name
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.to_engine.flavours import FlavourStatus


def finding(part):
    (found,) = (f for f in examine() if f.part == part)
    return found


@pytest.fixture
def flavours(monkeypatch):
    """Set the answers of the TensorRT packages."""

    def answer(**statuses):
        monkeypatch.setattr(environment, "available_flavours", lambda: statuses)

    answer(rtx=FlavourStatus("rtx", "1.7"))
    return answer


def test_the_environment_describes_this_machine(flavours):
    facts = json.loads(json.dumps(describe(), allow_nan=False))
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["packages"]["onnxruntime"] == onnxruntime.__version__
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert facts["memory_gb"] > 0.5
    assert facts["cpu"]
    assert facts["tsformer"]
    assert facts["date"].endswith("+00:00")
    assert facts["tensorrt"] == {"rtx": "1.7"}
    assert facts["gpu"] == gpu_name()
    assert (facts["cuda"] is None) is (facts["gpu"] is None)


def test_a_tensorrt_that_does_not_work_is_described_by_its_reason(flavours):
    flavours(tensorrt=FlavourStatus("tensorrt", None, "tensorrt is not installed", "pip install x"))
    assert describe()["tensorrt"] == {"tensorrt": "tensorrt is not installed"}
    found = finding("TensorRT")
    assert (found.works, found.found) == (False, "tensorrt is not installed")
    assert found.remedy == "pip install x"


def test_a_part_that_works_has_no_remedy(flavours):
    for part in ("PyTorch", "ONNX", "ONNX Runtime", "TensorRT-RTX", "Video (PyAV)"):
        found = finding(part)
        assert found.works, part
        assert found.remedy == "", part
        assert found.found, part


def test_without_onnxscript_no_exports_can_be_made(flavours, monkeypatch):
    known = environment._version
    monkeypatch.setattr(
        environment, "_version", lambda name: None if name == "onnxscript" else known(name)
    )
    found = finding("ONNX")
    assert not found.works
    assert found.found == "onnxscript not installed: exports can be used here, but not made"
    assert "pip install" in found.remedy


def test_without_a_gpu_the_doctor_lists_what_still_works(flavours, without_gpu):
    found = finding("NVIDIA GPU")
    assert (found.works, found.found) == (False, "none")
    assert found.remedy == "use a machine with an NVIDIA GPU"
    assert "ONNX Runtime on CUDA" not in [finding.part for finding in examine()]


def test_a_gpu_that_onnx_runtime_cannot_use_is_reported(flavours, monkeypatch):
    gpu = Gpu("NVIDIA H200", 1, "9.0", 139.8, "580.65.06", "13.0", "13.5")
    monkeypatch.setattr(environment, "look_for_gpu", lambda: GpuStatus(gpu, seen=True))
    monkeypatch.setattr(environment, "available_devices", lambda: ("cpu",))
    found = finding("ONNX Runtime on CUDA")
    assert not found.works
    assert found.remedy.startswith("pip uninstall onnxruntime, then pip install 'tsformer[runtime-")
    assert finding("ONNX Runtime").works
    assert finding("NVIDIA GPU").found == "NVIDIA H200, 139.8 GB, sm90, driver for CUDA 13.0"
    assert (describe()["gpu"], describe()["cuda"]["compute_capability"]) == ("NVIDIA H200", "9.0")
    monkeypatch.setattr(environment, "available_devices", lambda: ("cpu", "cuda"))

    def fall_back(_graph):
        raise RuntimeFailure("ONNX Runtime fell back", got="Failed to load libcublas.so")

    monkeypatch.setattr(environment, "OnnxRuntimeCudaRunner", fall_back)
    found = finding("ONNX Runtime on CUDA")
    assert (found.works, "libcublas" in found.found) == (False, True)
    assert "[runtime-gpu]" in found.remedy
    ran = []
    runner = SimpleNamespace(run=lambda inputs: ran.append(inputs["x"].shape))
    monkeypatch.setattr(environment, "OnnxRuntimeCudaRunner", lambda _: nullcontext(runner))
    assert finding("ONNX Runtime on CUDA").works
    assert ran == [(1,)]


def test_the_graph_that_cuda_is_tried_with_is_valid():
    onnx.checker.check_model(onnx.load_from_string(environment.IDENTITY))
    with OnnxRuntimeRunner(environment.IDENTITY) as runner:
        x = np.full(1, 2.5, np.float32)
        assert runner.run({"x": x}) == {"y": x}


@pytest.mark.parametrize(
    ("version", "imported", "works"),
    [(None, False, False), ("2026.4", False, False), ("2026.4", True, True)],
)
def test_openvino_works_where_it_can_be_imported(flavours, monkeypatch, version, imported, works):
    known = environment._version
    monkeypatch.setattr(
        environment, "_version", lambda name: version if name == "openvino" else known(name)
    )
    if not imported:
        monkeypatch.setitem(sys.modules, "openvino", None)
    found = finding("OpenVINO")
    assert (found.works, bool(found.remedy)) == (works, not works)
    assert not works or found.found.startswith("2026.4, fp32")


def test_a_gpu_that_cannot_be_used_is_a_finding_with_its_remedy(flavours, monkeypatch):
    status = GpuStatus(None, seen=True, reason="no cuda-bindings", remedy="pip install them")
    monkeypatch.setattr(environment, "look_for_gpu", lambda: status)
    found = finding("NVIDIA GPU")
    assert (found.works, found.found, found.remedy) == (
        False,
        "no cuda-bindings",
        "pip install them",
    )


def test_without_onnx_runtime_the_doctor_names_the_install_command(flavours, monkeypatch):
    def missing():
        raise RuntimeFailure("ONNX Runtime cannot be imported")

    monkeypatch.setattr(environment, "available_devices", missing)
    found = finding("ONNX Runtime")
    assert (found.works, found.remedy) == (False, how_to_install("onnxruntime"))


def test_without_av_the_doctor_names_the_install_command(flavours, monkeypatch):
    version = environment._version
    monkeypatch.setattr(
        environment, "_version", lambda name: None if name == "av" else version(name)
    )
    found = finding("Video (PyAV)")
    assert (found.works, found.remedy) == (False, "pip install av")


def test_without_torch_the_doctor_names_the_install_command(flavours, monkeypatch, capsys):
    from exporter.cli import main

    monkeypatch.setitem(sys.modules, "torch", None)
    found = finding("PyTorch")
    assert not found.works
    assert "exports can be used here" in found.found
    assert main(["doctor"]) == 0
    assert "'tsformer[cpu]'" in capsys.readouterr().out  # not read as markup
