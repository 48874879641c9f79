"""Test TensorRtRunner on a recording stand-in for TensorRT, and on a real engine with a GPU."""

import contextlib
import ctypes
import enum
import sys
import types

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, save

from exporter.errors import RuntimeFailure
from exporter.runners import tensorrt as runner_file
from exporter.runners.cuda import gpu_name
from exporter.runners.tensorrt import TensorRtRunner
from exporter.spec import BatchProfile
from exporter.to_engine.build import build_engine, choose_flavour

Mode = enum.Enum("Mode", "INPUT OUTPUT")
DataType = enum.Enum("DataType", "FLOAT HALF BF16")


class FakeLogger:
    def log(self, severity, msg):
        raise NotImplementedError


class FakeContext:
    """A context that doubles its input; it reads and writes at the given addresses."""

    def __init__(self, tensorrt):
        self.trt, self.shape, self.addresses = tensorrt, None, {}

    def set_input_shape(self, name, shape):
        self.trt.calls.append(("set_input_shape", name, shape))
        self.shape = shape
        return shape[0] <= 4

    def get_tensor_shape(self, name):
        return self.trt.output_shape or self.shape

    def set_tensor_address(self, name, address):
        self.trt.calls.append(("set_tensor_address", name))
        self.addresses[name] = address
        return self.trt.binds

    def execute_async_v3(self, stream):
        self.trt.calls.append(("execute_async_v3", stream))
        if not self.trt.executes:
            self.trt.logger.log(1, "launch failed")
            return False
        size = int(np.prod(self.shape))
        video, logits = (
            (ctypes.c_float * size).from_address(self.addresses[name])
            for name in ("video", "logits")
        )
        for i in range(size):
            logits[i] = 2 * video[i]
        return True


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, tensorrt):
        self.trt = tensorrt

    def get_tensor_name(self, index):
        return ("video", "logits")[index]

    def get_tensor_mode(self, name):
        return Mode.INPUT if name == "video" else Mode.OUTPUT

    def get_tensor_shape(self, name):
        return (-1, 3)

    def get_tensor_dtype(self, name):
        return self.trt.dtype

    def get_tensor_profile_shape(self, name, index):
        return [(1, 3), (2, 3), (4, 3)]

    def create_execution_context(self):
        return FakeContext(self.trt) if self.trt.makes_context else None


class FakeTensorRt(types.ModuleType):
    ILogger = FakeLogger

    def __init__(self):
        super().__init__("tensorrt_rtx")
        self.calls, self.logger, self.output_shape = [], None, None
        self.loads = self.makes_context = self.binds = self.executes = True
        self.dtype = DataType.FLOAT

    def Runtime(self, logger):  # noqa: N802  # TensorRT's name
        self.logger = logger
        return self

    def deserialize_cuda_engine(self, data):
        self.calls.append(("deserialize_cuda_engine", data))
        if self.loads:
            return FakeEngine(self)
        self.logger.log(2, "only a warning")
        self.logger.log(1, "wrong architecture")
        return None


@pytest.fixture
def trt(monkeypatch):
    fake = FakeTensorRt()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    stream = types.SimpleNamespace(
        cuda_stream=77, synchronize=lambda: fake.calls.append(("synchronize",))
    )
    monkeypatch.setattr(runner_file, "_cuda_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fake GPU")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    return fake


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(b"vtrt...")
    return path


VIDEO = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_it_binds_addresses_and_calls_in_order(trt, engine):
    with TensorRtRunner(engine, "rtx") as runner:
        assert runner.name == "tensorrt_rtx"
        assert runner.device == "cpu Fake GPU"
        assert runner.input_shapes == {"video": (None, 3)}
        assert runner.transfers_included
        logits = runner.run({"video": VIDEO})["logits"]
    np.testing.assert_array_equal(logits, 2 * VIDEO)
    assert trt.calls == [
        ("deserialize_cuda_engine", b"vtrt..."),
        ("set_input_shape", "video", (2, 3)),
        ("set_tensor_address", "video"),
        ("set_tensor_address", "logits"),
        ("execute_async_v3", 77),
        ("synchronize",),
    ]


def test_read_only_and_strided_inputs_are_copied(trt, engine):
    video = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    video.flags.writeable = False
    with TensorRtRunner(engine, "rtx") as runner:
        np.testing.assert_array_equal(runner.run({"video": video})["logits"], 2 * video)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"clip": VIDEO}, "wrong inputs"),
        ({"video": VIDEO[0]}, "wrong shape"),
        ({"video": VIDEO.astype(np.float64)}, "wrong dtype of 'video': got float64"),
        ({"video": np.zeros((5, 3), np.float32)}, r"profile: got \(5, 3\), expected \(1, 3\) to"),
    ],
)
def test_wrong_inputs_are_refused(trt, engine, inputs, message):
    with TensorRtRunner(engine, "rtx") as runner, pytest.raises(RuntimeFailure, match=message):
        runner.run(inputs)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("loads", False, "cannot load .* only on a GPU that it was built for.*wrong architecture"),
        ("makes_context", False, "cannot create an execution context"),
        ("binds", False, "cannot bind 'video'"),
        ("executes", False, "execution failed: got launch failed"),
        ("output_shape", (-1, 3), "shape of 'logits' is unknown"),
        ("dtype", DataType.BF16, "'video' is BF16"),
    ],
)
def test_every_failing_return_is_an_error(trt, engine, attribute, value, message):
    setattr(trt, attribute, value)
    with pytest.raises(RuntimeFailure, match=message) as caught:  # noqa: SIM117  # two statements are easier to read
        with TensorRtRunner(engine, "rtx") as runner:
            runner.run({"video": VIDEO})
    assert "only a warning" not in str(caught.value)


def test_torch_errors_are_runtime_failures(trt, engine, monkeypatch):
    def no_memory(*args, **options):
        raise torch.OutOfMemoryError("no memory left")

    with TensorRtRunner(engine, "rtx") as runner:
        monkeypatch.setattr(torch, "empty", no_memory)
        with pytest.raises(RuntimeFailure, match="no memory left"):
            runner.run({"video": VIDEO})


def test_a_missing_engine_file_is_an_error(trt, tmp_path):
    with pytest.raises(RuntimeFailure, match="cannot load"):
        TensorRtRunner(tmp_path / "none.engine", "rtx")


def test_a_missing_package_is_named(trt, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(RuntimeFailure, match="tensorrt_rtx is not installed"):
        TensorRtRunner(engine, "rtx")


def test_a_closed_runner_refuses_to_run(trt, engine):
    with TensorRtRunner(engine, "rtx") as runner:
        pass
    with pytest.raises(RuntimeFailure, match="closed"):
        runner.run({"video": VIDEO})


def test_an_engine_without_a_gpu_is_an_error(engine, without_gpu):
    with pytest.raises(RuntimeFailure, match="only on a GPU that it was built for"):
        TensorRtRunner(engine, "rtx")


@pytest.mark.gpu
@pytest.mark.skipif(gpu_name() is None, reason="needs a CUDA device")
def test_a_real_engine_gives_the_right_values(tmp_path):
    choice = choose_flavour("auto", gpu=True)
    if choice.flavour is None:
        pytest.skip(choice.reason)
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3]) for n in "xy"]
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "double", shapes[:1], shapes[1:])
    opset = [helper.make_opsetid("", 20)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx")
    build_engine(
        tmp_path / "m.onnx",
        tmp_path / "m.engine",
        flavour=choice.flavour,
        profile=BatchProfile(1, 2, 4),
    )
    with TensorRtRunner(tmp_path / "m.engine", choice.flavour) as runner:
        for batch in (1, 3, 4):
            x = np.random.default_rng(batch).standard_normal((batch, 3)).astype(np.float32)
            np.testing.assert_array_equal(runner.run({"x": x})["y"], x + x)
        with pytest.raises(RuntimeFailure, match="outside the engine's profile"):
            runner.run({"x": np.zeros((5, 3), np.float32)})
