"""A TensorRT engine as a runner, in memory of CUDA; it needs no torch.

Each set of input shapes has its own execution context and buffers, which are made once and used
again. So a captured graph never meets a context that was changed after the capture.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.runners.base import Arrays, Closing, check_inputs
from exporter.runners.cuda import require_gpu
from exporter.runners.cuda_stream import Buffer, Graph, Stream, time_runs
from exporter.runners.tensorrt_engine import NOT_EXECUTED, Engine
from exporter.to_engine.build import FLAVOURS
from exporter.to_engine.native import Native

MOST_BOUND = 4  # the buffers of so many sets of input shapes are kept
WARMUP_RUNS = 3


class Bound(Closing):
    """An execution context and buffers for one set of input shapes.

    Args:
        engine: The engine.
        shapes: The shapes of its inputs, by name.
        stream: The stream of all copies and runs.
        graph: Whether the kernels are launched as one CUDA graph.

    Raises:
        RuntimeFailure: if a shape is outside the engine's profile, or a call fails.
    """

    def __init__(
        self, engine: Engine, shapes: Mapping[str, tuple[int, ...]], stream: Stream, *, graph: bool
    ) -> None:
        self._engine, self._stream = engine, stream
        self._context: Native = engine.new_context(graph=graph)
        self._graph: Graph | None = None
        with ExitStack() as resources:
            self._shape_inputs(shapes)
            self._buffers = {
                name: resources.enter_context(Buffer(self._shape(name), engine.dtypes[name]))
                for name in (*engine.inputs, *engine.outputs)
            }
            for name, buffer in self._buffers.items():
                bound = self._context.set_tensor_address(name, buffer.address)
                engine.require(bound, f"cannot bind {name!r}")
            if graph and not engine.captures_by_itself:
                self._graph = resources.enter_context(Graph(stream, self._execute))
            self._resources = resources.pop_all()

    def upload(self, inputs: Arrays) -> None:
        """Copy the inputs to the GPU."""
        for name in self._engine.inputs:
            self._buffers[name].upload(inputs[name], self._stream)

    def launch(self) -> None:
        """Put one run on the stream."""
        if self._graph is None:
            self._execute()
        else:
            self._graph.launch(self._stream)

    def download(self) -> dict[str, np.ndarray]:
        """Wait for the runs; copy the outputs of the last one to the host."""
        for name in self._engine.outputs:
            self._buffers[name].download(self._stream)
        self._stream.synchronize()
        return {name: self._buffers[name].array.copy() for name in self._engine.outputs}

    def close(self) -> None:  # noqa: D102
        self._resources.close()
        self._context = None

    def _execute(self) -> None:
        started = self._context.execute_async_v3(int(self._stream))
        self._engine.require(started, "execution failed")

    def _shape_inputs(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise RuntimeFailure(
                    f"{self._engine.name}: {name!r} is outside the engine's profile",
                    got=shape,
                    expected=self._engine.profile(name),
                )

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        self._engine.require(-1 not in shape, f"the shape of {name!r} is unknown: {shape}")
        return shape


class TensorRtRunner(Closing):
    """Runs one engine on one GPU, on its own stream; times include both transfers.

    Args:
        engine_path: The file that `build_engine` wrote.
        flavour: The flavour that built it: a key of `FLAVOURS`.
        precision: Precision of the graph, for the report.
        cuda_graph: Whether `run` launches the kernels as one CUDA graph.

    Raises:
        RuntimeFailure: if there is no GPU, or TensorRT cannot load the engine on the GPU.
    """

    threads = 1
    transfers_included = True

    def __init__(
        self,
        engine_path: Path,
        flavour: str,
        precision: str = "fp32",
        *,
        cuda_graph: bool = False,
    ) -> None:
        self.name = FLAVOURS[flavour].module
        self.precision = precision
        self.device = f"cuda:0 {require_gpu(f'{self.name}: {NOT_EXECUTED}').name}"
        self._cuda_graph = cuda_graph
        self._bound: dict[tuple[object, ...], Bound] = {}
        with ExitStack() as resources:
            self._engine = resources.enter_context(Engine(engine_path, self.name))
            self._stream = resources.enter_context(Stream())
            self.input_shapes = self._engine.input_shapes
            self._resources: ExitStack | None = resources.pop_all()

    def close(self) -> None:  # noqa: D102
        resources, self._resources = self._resources, None
        if resources is None:
            return
        with resources:
            for bound in self._bound.values():
                resources.push(bound)
            self._bound = {}
            with suppress(RuntimeFailure):  # a fault of the GPU was told by the run
                self._stream.synchronize()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run the engine once; names, shapes and dtypes must be those of the engine."""
        bound = self._bind(inputs, graph=self._cuda_graph)
        bound.upload(inputs)
        bound.launch()
        return bound.download()

    def device_seconds(self, inputs: Arrays, runs: int, *, graph: bool) -> list[float]:
        """Time runs on the GPU alone, in seconds: events around the kernels, no transfer.

        Args:
            inputs: The inputs; they are copied to the GPU once, before the first run.
            runs: The number of runs.
            graph: Whether the kernels are launched as one CUDA graph.
        """
        bound = self._bind(inputs, graph=graph)
        bound.upload(inputs)
        for _ in range(WARMUP_RUNS):
            bound.launch()
        self._stream.synchronize()
        return time_runs(self._stream, bound.launch, runs)

    def _bind(self, inputs: Arrays, *, graph: bool) -> Bound:
        """Return the context and the buffers for these inputs; make them at the first call."""
        if self._resources is None:
            raise RuntimeFailure(f"{self.name}: the runner is closed")
        check_inputs(self, inputs)
        for name, array in inputs.items():
            expected = self._engine.dtypes[name]
            if array.dtype != expected:
                raise RuntimeFailure(
                    f"{self.name}: wrong dtype of {name!r}", got=array.dtype, expected=expected
                )
        shapes = {name: tuple(inputs[name].shape) for name in self._engine.inputs}
        key = (graph, *shapes.values())
        if key not in self._bound:
            if len(self._bound) == MOST_BOUND:
                self._bound.pop(next(iter(self._bound))).close()
            self._bound[key] = Bound(self._engine, shapes, self._stream, graph=graph)
        return self._bound[key]
