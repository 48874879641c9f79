"""Test ONNX Runtime on CUDA: real sessions of the CPU on the stand-in's memory and stream."""

import inspect
import sys
import types
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest
from cuda.bindings import runtime
from onnx import TensorProto, helper, save

from exporter.errors import RuntimeFailure
from exporter.runners import onnxruntime as runner_file
from exporter.runners.onnxruntime import PLUGIN, OnnxRuntimeRunner, available_devices
from exporter.runners.onnxruntime_cuda import OnnxRuntimeCudaRunner, open_onnxruntime

CUDA = "CUDAExecutionProvider"
RealSession = onnxruntime.InferenceSession


class Binding:
    """The real binding; what is bound to `cuda` lies on the host here."""

    def __init__(self, real):
        self.real = real

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert (device_type, device_id) == ("cuda", 0)
        self.real.bind_input(name, "cpu", 0, element_type, shape, buffer_ptr)

    def bind_output(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert (device_type, device_id) == ("cuda", 0)
        self.real.bind_output(name, "cpu", 0, element_type, shape, buffer_ptr)


class Session:
    """A real session of the CPU, whose runs are put on the stream of the settings."""

    opened: ClassVar = []

    def __init__(self, gpu, source, options, providers):
        ((self.provider, self.settings),) = providers
        self.gpu, self.runs = gpu, []
        self.real = RealSession(source, options, providers=["CPUExecutionProvider"])
        self.opened.append(self)

    def __getattr__(self, name):
        return getattr(self.real, name)

    def get_providers(self):
        return [self.provider, "CPUExecutionProvider"]

    def io_binding(self):
        return Binding(self.real.io_binding())

    def run_with_iobinding(self, iobinding, run_options=None):
        names = ("disable_synchronize_execution_providers", "gpu_graph_id")
        self.runs.append([run_options.get_run_config_entry(name) for name in names])
        self.gpu.enqueue(
            int(self.settings["user_compute_stream"]),
            lambda: self.real.run_with_iobinding(iobinding.real, run_options),
        )


@pytest.fixture
def sessions(monkeypatch, gpu):
    monkeypatch.setattr(Session, "opened", [])
    monkeypatch.setattr(runner_file, "_preload_cuda", lambda: "")
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *given, **named: Session(gpu, *given, **named)
    )
    return Session.opened


@pytest.fixture
def graph(tmp_path):
    """Write a graph with `logits = 2 video`, for each frame that the mask shows."""
    value = helper.make_tensor_value_info
    video = value("video", TensorProto.FLOAT, ["b", 3])
    mask = value("mask", TensorProto.BOOL, ["b", 3])
    logits = value("logits", TensorProto.FLOAT, ["b", 3])
    nodes = [
        helper.make_node("Add", ["video", "video"], ["twice"]),
        helper.make_node("Where", ["mask", "twice", "zero"], ["logits"]),
    ]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    made = helper.make_graph(nodes, "g", [video, mask], [logits], [zero])
    opset = [helper.make_opsetid("", 20)]
    save(helper.make_model(made, opset_imports=opset, ir_version=10), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def inputs(batch, scale=1.0):
    video = scale * np.arange(3 * batch, dtype=np.float32).reshape(batch, 3)
    return {"video": video, "mask": video < 4}


def expected(given):
    return np.where(given["mask"], 2 * given["video"], 0)


def test_a_run_goes_through_buffers_of_the_gpu(sessions, graph, gpu):
    with OnnxRuntimeCudaRunner(graph, threads=1) as runner:
        assert (runner.name, runner.device) == ("onnxruntime", "cuda")
        assert runner.input_shapes == {"video": (None, 3), "mask": (None, 3)}
        for given in (inputs(2), inputs(1), inputs(2, 3.0)):
            np.testing.assert_array_equal(runner.run(given)["logits"], expected(given))
    (session,) = sessions
    assert session.provider == CUDA
    assert session.settings["use_tf32"] == "0"
    assert session.settings["enable_cuda_graph"] == "0"
    assert session.runs == [["1", "-1"]] * 3  # ONNX Runtime does not wait, and captures nothing
    assert gpu.calls.count("cudaMalloc") == 2 * 3  # once for each shape: two inputs and an output


def test_each_shape_has_a_graph_of_its_own(sessions, graph):
    with OnnxRuntimeCudaRunner(graph, cuda_graph=True) as runner:
        for batch in (1, 2, 1):
            given = inputs(batch)
            np.testing.assert_array_equal(runner.run(given)["logits"], expected(given))
    (session,) = sessions
    assert session.settings["enable_cuda_graph"] == "1"
    assert [graph for _, graph in session.runs] == ["1", "2", "1"]


def test_the_time_on_the_device_has_no_transfer(sessions, graph, gpu):
    with OnnxRuntimeCudaRunner(graph) as runner:
        gpu.calls.clear()
        assert runner.device_seconds(inputs(2), 4, graph=False) == [0.001] * 4
        assert gpu.calls.count("cudaMemcpyAsync") == 2  # the two inputs, once
        assert runner.device_seconds(inputs(2), 4, graph=True) == [0.001] * 4
        given = inputs(2)
        np.testing.assert_array_equal(runner.run(given)["logits"], expected(given))
    assert [s.settings["enable_cuda_graph"] for s in sessions] == ["0", "1", "0"]


def test_more_threads_open_the_session_again(sessions, graph):
    with OnnxRuntimeCudaRunner(graph, threads=1) as runner:
        runner.run(inputs(1))
        runner.use_threads(2)
        given = inputs(1)
        np.testing.assert_array_equal(runner.run(given)["logits"], expected(given))
    assert len(sessions) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"video": inputs(1)["video"]}, "wrong inputs"),
        ({"video": np.zeros((1, 4), np.float32), "mask": inputs(1)["mask"]}, "wrong shape"),
        ({"video": np.zeros((1, 3)), "mask": inputs(1)["mask"]}, "wrong dtype of 'video'"),
    ],
)
def test_wrong_inputs_are_refused(sessions, graph, given, message):
    with OnnxRuntimeCudaRunner(graph) as runner, pytest.raises(RuntimeFailure, match=message):
        runner.run(given)


def test_a_failing_run_is_a_runtime_failure(sessions, graph):
    with OnnxRuntimeCudaRunner(graph) as runner:

        def fail(*_):
            raise ValueError("no\nmemory")

        sessions[0].run_with_iobinding = fail
        with pytest.raises(RuntimeFailure, match="ONNX Runtime failed: no memory"):
            runner.run(inputs(1))


@pytest.mark.parametrize("name", ["cudaStreamCreateWithFlags", "cudaMalloc", "cudaMemcpyAsync"])
def test_an_error_of_cuda_leaves_nothing(sessions, graph, gpu, name):
    gpu.fail[name] = runtime.cudaError_t.cudaErrorMemoryAllocation
    with (
        pytest.raises(RuntimeFailure, match=f"^{name} failed: cudaErrorMemoryAllocation"),
        OnnxRuntimeCudaRunner(graph) as runner,
    ):
        runner.run(inputs(1))
    assert (gpu.memory, gpu.live) == ({}, {})


def test_a_closed_runner_refuses_to_run(sessions, graph):
    with OnnxRuntimeCudaRunner(graph) as runner:
        pass
    with pytest.raises(RuntimeFailure, match="closed"):
        runner.run(inputs(1))


def test_without_a_gpu_it_says_so(graph, without_gpu):
    with pytest.raises(RuntimeFailure, match="ONNX Runtime on CUDA: this machine has no NVIDIA"):
        OnnxRuntimeCudaRunner(graph)


def test_a_fall_back_to_the_cpu_is_an_error_with_what_was_missing(monkeypatch, gpu, graph):
    def preload():
        sys.stdout.write("Failed to load libcublasLt.so.13\n")

    runner_file._preload_cuda.cache_clear()
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda source, options, providers: RealSession(
            source, options, providers=["CPUExecutionProvider"]
        ),
    )
    with pytest.raises(
        RuntimeFailure, match=r"got CPUExecutionProvider Failed to load libcublasLt.so.13, expected"
    ):
        OnnxRuntimeCudaRunner(graph)
    runner_file._preload_cuda.cache_clear()


@pytest.mark.parametrize("name", ["bind_input", "bind_output"])
def test_the_binding_has_the_parameters_of_the_real_one(name):
    real = inspect.signature(getattr(onnxruntime.IOBinding, name)).parameters
    assert list(inspect.signature(getattr(Binding, name)).parameters) == list(real)


def test_the_session_has_the_parameters_of_the_real_one():
    real = inspect.signature(RealSession.run_with_iobinding).parameters
    assert list(inspect.signature(Session.run_with_iobinding).parameters) == list(real)


class Plugin:
    """NVIDIA's plug-in, and what ONNX Runtime finds once it is registered."""

    def __init__(self, monkeypatch, devices):
        self.registered, self.chosen = [], []
        name = "NvTensorRTRTXExecutionProvider"
        package = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
        package.get_ep_name, package.get_library_path = lambda: name, lambda: "lib.so"
        monkeypatch.setitem(sys.modules, package.__name__, package)
        found = [types.SimpleNamespace(ep_name=name) for _ in range(devices)]
        other = types.SimpleNamespace(ep_name="CPUExecutionProvider")
        for function, stand_in in {
            "register_execution_provider_library": lambda *given: self.registered.append(given),
            "get_ep_devices": lambda: [other, *found],
            "SessionOptions": self.make_options,
            "InferenceSession": self.open,
        }.items():
            monkeypatch.setattr(onnxruntime, function, stand_in)  # which must exist there
        assert hasattr(RealOptions, "add_provider_for_devices")
        runner_file._plugin_devices.cache_clear()

    def make_options(self):
        class Options:
            def add_provider_for_devices(_self, devices, settings):  # noqa: N805
                self.chosen.append((devices, settings))

            def add_session_config_entry(_self, name, value):  # noqa: N805
                pass

        return Options()

    def open(self, source, options):
        session = RealSession(source, providers=["CPUExecutionProvider"])
        session.get_providers = lambda: ["NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"]
        return session


RealOptions = onnxruntime.SessionOptions


@pytest.fixture
def plugin(monkeypatch):
    yield lambda devices: Plugin(monkeypatch, devices)
    runner_file._plugin_devices.cache_clear()


def test_the_plugin_runs_on_the_first_gpu_that_it_knows(plugin, graph):
    found = plugin(2)
    for _ in range(2):
        with open_onnxruntime(graph, PLUGIN, threads=1, precision="fp16") as runner:
            assert (runner.name, runner.device) == ("onnxruntime", "tensorrt_rtx")
            given = inputs(2)
            np.testing.assert_array_equal(runner.run(given)["logits"], expected(given))
    assert found.registered == [("NvTensorRTRTXExecutionProvider", "lib.so")]  # once
    assert [len(devices) for devices, _ in found.chosen] == [1, 1]


def test_a_gpu_that_the_plugin_does_not_know_is_an_error(plugin, graph):
    plugin(0)
    with pytest.raises(RuntimeFailure, match="does not know this GPU"):
        OnnxRuntimeRunner(graph, PLUGIN)


def test_the_devices_are_those_of_the_packages(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(runner_file.importlib.util, "find_spec", lambda name: None)
    assert available_devices() == ("cpu",)
    monkeypatch.setattr(runner_file.importlib.util, "find_spec", lambda name: object())
    assert available_devices() == ("cpu", "tensorrt_rtx")
