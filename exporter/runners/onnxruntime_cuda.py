"""ONNX Runtime on CUDA: inputs and outputs are bound to buffers of the GPU, on one stream."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import RuntimeFailure
from exporter.runners.base import Arrays, check_inputs
from exporter.runners.cuda import require_gpu
from exporter.runners.cuda_stream import Stream
from exporter.runners.device import Bound, OnDevice, Shapes
from exporter.runners.onnxruntime import OnnxRuntimeRunner, run_options

if TYPE_CHECKING:
    from exporter.runners.onnxruntime import Graph

DTYPES = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}
Session = Any  # an InferenceSession
Value = Any  # an input or output of one


class OnnxRuntimeCudaRunner(OnDevice, OnnxRuntimeRunner):
    """One session of ONNX Runtime on the GPU; float32 is computed without TF32.

    Args:
        graph: The ONNX file, or a model or its bytes in memory.
        threads: Threads of one run, for what stays on the CPU.
        precision: The precision of the graph, for the report.
        cuda_graph: Whether `run` launches the kernels as one CUDA graph.

    Raises:
        RuntimeFailure: if there is no GPU, or the graph does not load on it.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        threads: int = 1,
        precision: str = "fp32",
        cuda_graph: bool = False,
    ) -> None:
        require_gpu("ONNX Runtime on CUDA")
        self._cuda_graph = self._captures = cuda_graph
        self._bound, self._graphs = {}, 0
        with ExitStack() as resources:
            self._stream = resources.enter_context(Stream())
            super().__init__(graph, "cuda", threads=threads, precision=precision)
            self._resources: ExitStack | None = resources.pop_all()

    def close(self) -> None:  # noqa: D102
        resources, self._resources = self._resources, None
        if resources is not None:
            with resources:  # the stream is the last to go
                self._forget()
                super().close()

    def _settings(self) -> dict[str, str]:
        return {
            "use_tf32": "0",  # otherwise the tensor cores compute float32 in TF32
            "user_compute_stream": str(int(self._stream)),
            "enable_cuda_graph": str(int(self._captures)),
        }

    def _reopen(self) -> None:
        self._forget()
        super()._reopen()

    def _bound_to(self, inputs: Arrays, *, graph: bool) -> Bound:
        if self._resources is None:
            raise RuntimeFailure("onnxruntime: the runner is closed")
        if graph != self._captures:
            self._captures = graph
            self._reopen()
        check_inputs(self, inputs, {v.name: _dtype(v) for v in self._session.get_inputs()})
        shapes = {name: tuple(array.shape) for name, array in inputs.items()}
        return self._keep(tuple(sorted(shapes.items())), lambda: self._make_bound(shapes))

    def _make_bound(self, shapes: Shapes) -> Bound:
        # Each captured graph has its number; 0 belongs to ONNX Runtime, -1 means no graph.
        self._graphs += 1
        number = self._graphs if self._captures else -1
        return BoundSession(self._session, shapes, self._stream, number)


class BoundSession(Bound):
    """Buffers that are bound to a session for one set of input shapes.

    Args:
        session: The session.
        shapes: The shapes of its inputs, by name.
        stream: The stream of the session.
        graph: The number of the captured graph.
    """

    def __init__(self, session: Session, shapes: Shapes, stream: Stream, graph: int) -> None:
        self._session: Session = session
        self._binding: Any = session.io_binding()
        # The copies are on the stream of the session, so that it need not wait for a run.
        wait = {"disable_synchronize_execution_providers": "1"}
        self._options = run_options(**wait, gpu_graph_id=str(graph))
        inputs = session.get_inputs()
        free = {
            axis: size
            for value in inputs
            for axis, size in zip(value.shape, shapes[value.name], strict=True)
        }
        values = [*inputs, *session.get_outputs()]
        super().__init__(
            stream,
            {value.name: _shape(value, free) for value in values},
            {value.name: _dtype(value) for value in values},
            [value.name for value in inputs],
        )

    def launch(self) -> None:  # noqa: D102
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # its exception classes share no public base
            raise RuntimeFailure(f"ONNX Runtime failed: {error}") from error

    def close(self) -> None:  # noqa: D102
        self._binding = self._session = None
        super().close()

    def _bind(self) -> None:
        for name, buffer in self.buffers.items():
            is_input = name in self._inputs
            bind = self._binding.bind_input if is_input else self._binding.bind_output
            bind(name, "cuda", 0, buffer.array.dtype.type, buffer.array.shape, buffer.address)


def _dtype(value: Value) -> str:
    if value.type not in DTYPES:
        raise RuntimeFailure(f"ONNX Runtime on CUDA: {value.name!r} is {value.type}")
    return DTYPES[value.type]


def _shape(value: Value, free: Mapping[object, int]) -> tuple[int, ...]:
    """Replace the names of free axes by the sizes that the inputs gave them."""
    shape = tuple(axis if isinstance(axis, int) else free.get(axis) for axis in value.shape)
    sizes = tuple(size for size in shape if size is not None)
    if len(sizes) < len(shape):
        raise RuntimeFailure(f"ONNX Runtime on CUDA: the shape of {value.name!r} is unknown")
    return sizes


def open_onnxruntime(
    graph: Path, device: str, *, threads: int, precision: str
) -> OnnxRuntimeRunner:
    """Open a graph on one of `available_devices`."""
    if device == "cuda":
        return OnnxRuntimeCudaRunner(graph, threads=threads, precision=precision)
    return OnnxRuntimeRunner(graph, device, threads=threads, precision=precision)
