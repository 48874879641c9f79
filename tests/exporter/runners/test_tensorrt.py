"""Test TensorRtRunner on a recording stand-in for TensorRT, and on a real engine with a GPU."""

import inspect
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cuda.bindings import runtime
from onnx import TensorProto, helper, save

from exporter.errors import RuntimeFailure
from exporter.runners import device
from exporter.runners.cuda import gpu_name
from exporter.runners.tensorrt import TensorRtRunner
from exporter.spec import BatchProfile
from exporter.to_engine.build import build_engine
from exporter.to_engine.flavours import choose_flavour


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(b"vtrt...")
    return path


VIDEO = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_it_binds_addresses_and_calls_in_order(trt, engine):
    with TensorRtRunner(engine, "rtx") as runner:
        assert runner.name == "tensorrt_rtx"
        assert runner.device == "cuda:0 Stand-in"
        assert runner.input_shapes == {"video": (None, 3)}
        assert runner.transfers_included
        logits = runner.run({"video": VIDEO})["logits"]
    np.testing.assert_array_equal(logits, 2 * VIDEO)  # the caller's own, after the end
    assert trt.calls == [
        ("deserialize_cuda_engine", b"vtrt..."),
        ("create_execution_context",),
        ("set_input_shape", "video", (2, 3)),
        ("set_tensor_address", "video"),
        ("set_tensor_address", "logits"),
        ("execute_async_v3",),
    ]


def test_buffers_are_made_once_for_each_shape(trt, engine, gpu):
    one, two = VIDEO[:1], VIDEO
    with TensorRtRunner(engine, "rtx") as runner:
        for video in (one, two, one, two, 3 * one):
            np.testing.assert_array_equal(runner.run({"video": video})["logits"], 2 * video)
    assert gpu.calls.count("cudaMalloc") == gpu.calls.count("cudaMallocHost") == 4
    assert gpu.calls.count("cudaFree") == gpu.calls.count("cudaFreeHost") == 4
    assert trt.calls.count(("create_execution_context",)) == 2


def test_the_buffers_of_the_oldest_shapes_are_freed(trt, engine, gpu, monkeypatch):
    monkeypatch.setattr(device, "MOST_BOUND", 2)
    with TensorRtRunner(engine, "rtx") as runner:
        for batch in (1, 2, 3):
            runner.run({"video": np.ones((batch, 3), np.float32)})
        assert sorted(len(memory) for kind, memory in gpu.memory.values() if kind == "host") == [
            *(24, 24),
            *(36, 36),
        ]
        runner.run({"video": VIDEO[:1]})
    assert trt.calls.count(("create_execution_context",)) == 4


def test_everything_is_freed_in_the_order_of_the_manual(trt, engine, gpu):
    with TensorRtRunner(engine, "rtx") as runner:
        runner.run({"video": VIDEO})
        gpu.calls.clear()
        runner.close()
        assert gpu.calls == [
            "cudaStreamSynchronize",
            *("cudaFreeHost", "cudaFree") * 2,
            "cudaStreamDestroy",
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
        ("dtype", SimpleNamespace(name="BF16"), "'video' is BF16"),
    ],
)
def test_every_failing_return_is_an_error(trt, engine, attribute, value, message):
    setattr(trt, attribute, value)
    with pytest.raises(RuntimeFailure, match=message) as caught:  # noqa: SIM117  # two statements are easier to read
        with TensorRtRunner(engine, "rtx") as runner:
            runner.run({"video": VIDEO})
    assert "only a warning" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["cudaStreamCreateWithFlags", "cudaMalloc", "cudaMallocHost", "cudaMemcpyAsync"]
)
def test_an_error_of_cuda_is_a_runtime_failure_and_leaves_nothing(trt, engine, gpu, name):
    gpu.fail[name] = runtime.cudaError_t.cudaErrorMemoryAllocation
    expected = f"^{name} failed: cudaErrorMemoryAllocation: out of memory$"
    with pytest.raises(RuntimeFailure, match=expected), TensorRtRunner(engine, "rtx") as runner:
        runner.run({"video": VIDEO})
    assert (gpu.memory, gpu.live) == ({}, {})


@pytest.mark.parametrize("fixture", ["trt", "enterprise"])
@pytest.mark.parametrize("graph", [True, False])
def test_the_time_on_the_device_has_no_transfer(request, engine, gpu, fixture, graph):
    request.getfixturevalue(fixture)
    flavour = {"trt": "rtx", "enterprise": "tensorrt"}[fixture]
    with TensorRtRunner(engine, flavour) as runner:
        gpu.calls.clear()
        seconds = runner.device_seconds({"video": VIDEO}, 5, graph=graph)
        assert seconds == [0.001] * 5  # the stand-in takes 1 ms for a kernel or a graph
        assert gpu.calls.count("cudaMemcpyAsync") == 1


def test_tensorrt_is_captured_once_and_replayed(enterprise, engine, gpu):
    with TensorRtRunner(engine, "tensorrt", cuda_graph=True) as runner:
        for scale in (1, 2, 3):
            video = scale * VIDEO
            np.testing.assert_array_equal(runner.run({"video": video})["logits"], 2 * video)
    assert enterprise.calls.count(("execute_async_v3",)) == 2  # once without, once under capture
    assert gpu.calls.count("cudaStreamBeginCapture") == 1
    assert gpu.calls.count("cudaGraphLaunch") == 3


def test_an_engine_that_cannot_be_captured_is_an_error(enterprise, engine, gpu):
    enterprise.refuses = True
    with TensorRtRunner(engine, "tensorrt", cuda_graph=True) as runner:
        with pytest.raises(RuntimeFailure, match="execution failed: got launch failed"):
            runner.run({"video": VIDEO})
        runner.device_seconds({"video": VIDEO}, 1, graph=False)


def test_tensorrt_rtx_captures_by_itself_and_compiles_its_kernels_first(trt, engine, gpu):
    with TensorRtRunner(engine, "rtx", cuda_graph=True) as runner:
        np.testing.assert_array_equal(runner.run({"video": VIDEO})["logits"], 2 * VIDEO)
        runner.device_seconds({"video": VIDEO}, 1, graph=False)
    assert [config.cuda_graph_strategy.name for config in trt.configs] == [
        "WHOLE_GRAPH_CAPTURE",
        "DISABLED",
    ]
    kernels = {config.dynamic_shapes_kernel_specialization_strategy.name for config in trt.configs}
    assert kernels == {"EAGER"}
    assert "cudaStreamBeginCapture" not in gpu.calls


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
    runner.close()  # a second time
    with pytest.raises(RuntimeFailure, match="closed"):
        runner.run({"video": VIDEO})


def parameters(method):
    """The names of the parameters of a native method, for each of its signatures."""
    found = re.findall(r"\(self: [^,)]+(.*?)\) ->", method.__doc__)
    return [re.findall(r", (\w+):", text) for text in found]


@pytest.mark.parametrize(
    ("standing_in", "real", "names"),
    [
        ("Context", "IExecutionContext", 4),
        ("Engine", "ICudaEngine", 6),
        ("RtxEngine", "ICudaEngine", 1),
        ("TensorRt", "Runtime", 1),
    ],
)
def test_a_stand_in_has_the_methods_of_tensorrt(trt, standing_in, real, names):
    native = getattr(pytest.importorskip("tensorrt_rtx_bindings"), real)
    stand_ins = sys.modules[type(trt).__module__]
    methods = vars(getattr(stand_ins, f"StandIn{standing_in}"))
    compared = [
        (name, list(inspect.signature(method).parameters)[1:])
        for name, method in methods.items()
        if inspect.isfunction(method) and not name.startswith("_") and name != "Runtime"
    ]
    assert len(compared) == names
    for name, given in compared:
        assert given in parameters(getattr(native, name)), name


def test_a_stand_in_has_the_settings_of_tensorrt(trt):
    native = pytest.importorskip("tensorrt_rtx_bindings")
    for name in vars(trt.engine(trt).create_runtime_config()):
        assert isinstance(getattr(native.IRuntimeConfig, name), property)
    for name in ("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"):
        for member in getattr(trt, name):
            assert hasattr(getattr(native, name), member.name)
    for member in type(trt.dtype):
        assert hasattr(native.DataType, member.name)


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
