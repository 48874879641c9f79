"""Test streams, buffers, events and graphs on the stand-in, and that against the real package."""

import ast
import inspect
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import runtime

from exporter.errors import RuntimeFailure
from exporter.runners import cuda_stream
from exporter.runners.cuda_stream import Buffer, Event, Graph, Stream, time_runs

Error = runtime.cudaError_t
CLIP = np.arange(6, dtype=np.float32).reshape(2, 3)
CALLED = {
    node.args[0].value
    for path in Path(cuda_stream.__file__).parent.glob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Name)
    and node.func.id == "call"
    and isinstance(node.args[0], ast.Constant)
}


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_every_function_that_is_called_has_a_stand_in(gpu):
    assert len(CALLED) > 20
    assert {name for name in dir(type(gpu)) if name.startswith("cuda")} >= CALLED


@pytest.mark.parametrize("name", sorted(CALLED))
def test_a_stand_in_has_the_parameters_of_the_real_function(gpu, name):
    standing_in = vars(type(gpu))[name]
    assert parameters(standing_in)[1:] == parameters(getattr(runtime, name))


@pytest.mark.parametrize("name", ["cudaMallocHost", "cudaStreamEndCapture", "cudaGraphInstantiate"])
@pytest.mark.skipif(runtime.cudaDriverGetVersion()[1] > 0, reason="about machines without a driver")
def test_a_real_function_that_fails_returns_one_empty_result(name):
    arguments = [0] * len(parameters(getattr(runtime, name)))
    assert getattr(runtime, name)(*arguments) == (Error.cudaErrorInsufficientDriver, None)


def test_a_buffer_is_copied_there_and_back(gpu):
    with Stream() as stream, Buffer(CLIP.shape, "float32") as buffer:
        buffer.upload(CLIP, stream)
        stream.synchronize()
        buffer.array[:] = 0
        buffer.download(stream)
        assert not buffer.array.any()  # the copy runs later
        stream.synchronize()
        np.testing.assert_array_equal(buffer.array, CLIP)
        assert {kind for kind, _ in gpu.memory.values()} == {"host", "device"}


def test_an_array_of_another_type_or_shape_is_not_copied(gpu):
    with Stream() as stream, Buffer(CLIP.shape, "float32") as buffer:
        with pytest.raises(TypeError):
            buffer.upload(CLIP.astype(np.float64), stream)
        with pytest.raises(ValueError, match="broadcast"):
            buffer.upload(np.zeros((2, 4), np.float32), stream)


def test_an_empty_buffer_has_an_address(gpu):
    with Buffer((0, 3), "float32") as buffer:
        assert buffer.address
        assert buffer.array.shape == (0, 3)


def test_events_time_what_is_between_them(gpu):
    with Stream() as stream, Buffer((1,), "int32") as buffer:
        taken = time_runs(stream, lambda: [buffer.download(stream) for _ in range(3)], 2)
    assert taken == [0.003, 0.003]  # the stand-in takes 1 ms for a copy


def test_a_graph_replays_what_was_captured(gpu):
    seen = []
    with Stream() as stream:
        with Graph(stream, lambda: gpu.enqueue(stream, lambda: seen.append("ran"))) as graph:
            assert seen == ["ran"]  # once, without capture
            graph.launch(stream)
            graph.launch(stream)
            stream.synchronize()
        assert seen == ["ran"] * 3
    names = [name for name in gpu.calls if "Graph" in name or "Capture" in name]
    assert names == [
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
        "cudaGraphLaunch",
        "cudaGraphLaunch",
        "cudaGraphExecDestroy",
    ]


def test_a_launch_that_fails_under_capture_leaves_the_stream_usable(gpu):
    def launch():
        if gpu.captured:
            raise RuntimeFailure("the engine refuses")
        gpu.enqueue(stream, lambda: None)

    with Stream() as stream:
        with pytest.raises(RuntimeFailure, match="the engine refuses"):
            Graph(stream, launch)
        assert gpu.captured == {}
        stream.synchronize()


def everything(resources):
    """Use every class once."""
    stream = resources.enter_context(Stream())
    buffer = resources.enter_context(Buffer((2,), "float32"))
    buffer.upload(np.zeros(2, np.float32), stream)
    graph = resources.enter_context(Graph(stream, lambda: buffer.download(stream)))
    time_runs(stream, lambda: graph.launch(stream), 1)
    stream.synchronize()


DESTROYERS = {name for name in CALLED if "Destroy" in name or "Free" in name}
USED = {name for name in CALLED if "Device" not in name and "GetVersion" not in name}


@pytest.mark.parametrize("name", sorted(USED))
def test_an_error_of_every_call_is_named(gpu, name):
    gpu.fail[name] = Error.cudaErrorIllegalAddress
    expected = f"^{name} failed: cudaErrorIllegalAddress: an illegal memory access"
    with pytest.raises(RuntimeFailure, match=expected), ExitStack() as resources:
        everything(resources)


@pytest.mark.parametrize("name", sorted(USED - DESTROYERS))
def test_after_an_error_everything_is_freed(gpu, name):
    gpu.fail[name] = Error.cudaErrorMemoryAllocation
    with pytest.raises(RuntimeFailure), ExitStack() as resources:
        everything(resources)
    assert gpu.memory == {}
    gpu.live = {a: kind for a, kind in gpu.live.items() if kind != "graph"}
    assert gpu.live == {}


def test_the_first_error_is_the_one_that_is_told(gpu):
    with pytest.raises(RuntimeFailure, match="cudaStreamSynchronize failed"):  # noqa: SIM117
        with Stream() as stream, Event():
            gpu.fail = dict.fromkeys(
                ("cudaStreamSynchronize", "cudaEventDestroy", "cudaStreamDestroy"),
                Error.cudaErrorLaunchFailure,
            )
            stream.synchronize()
