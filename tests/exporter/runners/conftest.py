"""Stand-ins for a GPU: CUDA that keeps its memory on the host, and a TensorRT that doubles.

What is put on a stream runs when the host waits for the stream, and not before: a missing wait
gives old values. Every function has the parameters of the real package, which the tests compare.
"""

import ctypes
import enum
import sys
import types

import numpy as np
import pytest
from cuda.bindings import runtime

from exporter.runners import cuda as cuda_file

Error = runtime.cudaError_t
OK = Error.cudaSuccess


class Handle:
    """An object of CUDA; other libraries take its address."""

    made = 1000

    def __init__(self):
        Handle.made += 1
        self.address = Handle.made

    def __int__(self):
        return self.address


class StandInCuda:
    """`cuda.bindings.runtime` on a machine with one GPU, whose work takes 1 ms each."""

    cudaError_t = Error  # noqa: N815  # this and the names below are CUDA's
    cudaMemcpyKind = runtime.cudaMemcpyKind  # noqa: N815
    cudaStreamCaptureMode = runtime.cudaStreamCaptureMode  # noqa: N815
    cudaStreamNonBlocking = runtime.cudaStreamNonBlocking  # noqa: N815
    cudaGetErrorName = staticmethod(runtime.cudaGetErrorName)  # noqa: N815
    cudaGetErrorString = staticmethod(runtime.cudaGetErrorString)  # noqa: N815

    def __init__(self):
        self.fail = {}  # the error that a function returns, by its name
        self.calls = []
        self.memory = {}  # address: (kind, the bytes)
        self.live = {}  # address of a stream, event or graph: its name
        self.queues = {}  # address of a stream: what is to run
        self.captured = {}  # address of a stream: what is being captured
        self.now = 0.0  # ms
        self.marks = {}

    def __getattribute__(self, name):
        """Log each call of CUDA, and fail where a test asks for it."""
        found = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not isinstance(found, types.MethodType):
            return found

        def call(*arguments):
            self.calls.append(name)
            if name in self.fail:
                return (self.fail[name], None)
            return found(*arguments)

        return call

    def enqueue(self, stream, work):
        """Put work on a stream, as a launch of a kernel does."""
        address = int(stream)
        assert self.live.get(address) == "stream"
        self.captured.get(address, self.queues[address]).append(work)

    def _make(self, kind):
        handle = Handle()
        self.live[int(handle)] = kind
        return handle

    def _destroy(self, handle, kind):
        assert self.live.pop(int(handle)) == kind
        return (OK,)

    def _allocate(self, kind, size):
        memory = (ctypes.c_byte * size)()
        address = ctypes.addressof(memory)
        ctypes.memset(address, 0xFF, size)  # NaN, as floats
        self.memory[address] = (kind, memory)
        return OK, address

    def _free(self, kind, address):
        assert self.memory.pop(address)[0] == kind
        return (OK,)

    def cudaGetDeviceCount(self):  # noqa: N802
        return OK, 1

    def cudaGetDeviceProperties(self, device):  # noqa: N802
        assert device == 0
        facts = {"name": b"Stand-in", "major": 8, "minor": 6, "totalGlobalMem": 2**30}
        return OK, types.SimpleNamespace(**facts)

    def cudaDriverGetVersion(self):  # noqa: N802
        return OK, 13000

    def cudaRuntimeGetVersion(self):  # noqa: N802
        return OK, 13000

    def cudaMalloc(self, size):  # noqa: N802
        return self._allocate("device", size)

    def cudaFree(self, devPtr):  # noqa: N802, N803
        return self._free("device", devPtr)

    def cudaMallocHost(self, size):  # noqa: N802
        return self._allocate("host", size)

    def cudaFreeHost(self, ptr):  # noqa: N802
        return self._free("host", ptr)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):  # noqa: N802
        copies = runtime.cudaMemcpyKind
        up = {copies.cudaMemcpyHostToDevice: True, copies.cudaMemcpyDeviceToHost: False}[kind]
        for address, place in (
            (src, "host" if up else "device"),
            (dst, "device" if up else "host"),
        ):
            assert self.memory[address][0] == place
            assert count <= len(self.memory[address][1])

        def copy():
            ctypes.memmove(self.memory[dst][1], self.memory[src][1], count)

        self.enqueue(stream, copy)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):  # noqa: N802
        stream = self._make("stream")
        self.queues[int(stream)] = []
        return OK, stream

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        assert int(stream) not in self.captured, "no one may wait for a stream under capture"
        queue = self.queues[int(stream)]
        while queue:
            queue.pop(0)()
            self.now += 1
        return (OK,)

    def cudaStreamDestroy(self, stream):  # noqa: N802
        left = self.queues.pop(int(stream))
        assert not left or self.fail, "work is left on the stream"
        return self._destroy(stream, "stream")

    def cudaEventCreate(self):  # noqa: N802
        return OK, self._make("event")

    def cudaEventRecord(self, event, stream):  # noqa: N802
        def mark():
            self.now -= 1  # a mark takes no time
            self.marks[int(event)] = (self.now + 1, int(stream))

        self.marks[int(event)] = (None, int(stream))
        self.enqueue(stream, mark)
        return (OK,)

    def cudaEventSynchronize(self, event):  # noqa: N802
        return self.cudaStreamSynchronize(self.marks[int(event)][1])

    def cudaEventElapsedTime(self, start, end):  # noqa: N802
        return OK, self.marks[int(end)][0] - self.marks[int(start)][0]

    def cudaEventDestroy(self, event):  # noqa: N802
        return self._destroy(event, "event")

    def cudaStreamBeginCapture(self, stream, mode):  # noqa: N802
        assert mode == runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert not self.queues[int(stream)], "the stream is not idle"
        self.captured[int(stream)] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):  # noqa: N802
        graph = self._make("graph")
        graph.work = self.captured.pop(int(stream))
        return OK, graph

    def cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        assert flags == 0
        executable = self._make("executable")
        executable.work = list(graph.work)
        return OK, executable

    def cudaGraphDestroy(self, graph):  # noqa: N802
        return self._destroy(graph, "graph")

    def cudaGraphLaunch(self, graphExec, stream):  # noqa: N802, N803
        def replay():
            for work in graphExec.work:
                work()

        self.enqueue(stream, replay)
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec):  # noqa: N802, N803
        return self._destroy(graphExec, "executable")


@pytest.fixture
def gpu(monkeypatch):
    """Make this a machine with one GPU; after the test nothing of it may be left."""
    stand_in = StandInCuda()
    monkeypatch.setattr(cuda_file, "_import_bindings", lambda: stand_in)
    yield stand_in
    if not stand_in.fail:  # what cannot be freed is left
        assert (stand_in.memory, stand_in.live) == ({}, {})


Mode = enum.Enum("Mode", "INPUT OUTPUT")
DataType = enum.Enum("DataType", "FLOAT HALF BF16")
Strategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
Kernels = enum.Enum("DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE")


class StandInLogger:
    def log(self, severity, msg):
        raise NotImplementedError


class StandInConfig:
    """The settings of a context."""

    def __init__(self):
        self.cuda_graph_strategy = Strategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = Kernels.LAZY


class StandInContext:
    """A context that doubles its input; it reads and writes at the given addresses."""

    def __init__(self, tensorrt, config):
        self.trt, self.config, self.shape, self.addresses = tensorrt, config, None, {}

    def set_input_shape(self, name, shape):
        self.trt.calls.append(("set_input_shape", name, shape))
        self.shape = shape
        return shape[0] <= 4

    def get_tensor_shape(self, name):
        return self.shape if name == "video" else self.trt.output_shape or self.shape

    def set_tensor_address(self, name, memory):
        self.trt.calls.append(("set_tensor_address", name))
        self.addresses[name] = memory
        return self.trt.binds

    def execute_async_v3(self, stream_handle):
        self.trt.calls.append(("execute_async_v3",))
        if not self.trt.executes or (stream_handle in self.trt.cuda.captured and self.trt.refuses):
            self.trt.logger.log(1, "launch failed")
            return False
        size = int(np.prod(self.shape))

        def double():
            video, logits = (
                (ctypes.c_float * size).from_address(self.addresses[name])
                for name in ("video", "logits")
            )
            for i in range(size):
                logits[i] = 2 * video[i]

        self.trt.cuda.enqueue(stream_handle, double)
        return True


class StandInEngine:
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

    def get_tensor_profile_shape(self, name, profile_index):
        return [(1, 3), (2, 3), (4, 3)]

    def create_execution_context(self, runtime_config=None):
        self.trt.calls.append(("create_execution_context",))
        self.trt.configs.append(runtime_config)
        return StandInContext(self.trt, runtime_config) if self.trt.makes_context else None


class StandInRtxEngine(StandInEngine):
    """TensorRT-RTX compiles kernels and captures graphs by itself, where it is told to."""

    def create_runtime_config(self):
        return StandInConfig()


class StandInTensorRt(types.ModuleType):
    ILogger = StandInLogger

    def __init__(self, name, cuda):
        super().__init__(name)
        self.cuda, self.engine = cuda, StandInEngine
        self.calls, self.configs, self.logger, self.output_shape = [], [], None, None
        self.loads = self.makes_context = self.binds = self.executes = True
        self.refuses = False  # whether it refuses to run under capture
        self.dtype = DataType.FLOAT
        if name == "tensorrt_rtx":
            self.engine = StandInRtxEngine
            self.CudaGraphStrategy = Strategy
            self.DynamicShapesKernelSpecializationStrategy = Kernels

    def Runtime(self, logger):  # noqa: N802  # TensorRT's name
        self.logger = logger
        return self

    def deserialize_cuda_engine(self, serialized_engine):
        self.calls.append(("deserialize_cuda_engine", serialized_engine))
        if self.loads:
            return self.engine(self)
        self.logger.log(2, "only a warning")
        self.logger.log(1, "wrong architecture")
        return None


@pytest.fixture
def trt(monkeypatch, gpu):
    """TensorRT-RTX on that GPU."""
    stand_in = StandInTensorRt("tensorrt_rtx", gpu)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in)
    return stand_in


@pytest.fixture
def enterprise(monkeypatch, gpu):
    """TensorRT on that GPU."""
    stand_in = StandInTensorRt("tensorrt", gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    return stand_in
