"""A TensorRT engine as a runner, in memory of CUDA; it needs no torch.

Each set of input shapes has its own execution context and buffers. So a captured graph never meets
a context that was changed after the capture.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from exporter.errors import RuntimeFailure
from exporter.runners.base import Arrays, Closing, check_inputs
from exporter.runners.cuda import require_gpu
from exporter.runners.cuda_stream import Graph, Stream
from exporter.runners.device import Bound, OnDevice, Shapes
from exporter.runners.tensorrt_engine import NOT_EXECUTED, Engine
from exporter.to_engine.flavours import FLAVOURS
from exporter.to_engine.native import Native


class BoundContext(Bound):
    """An execution context and buffers for one set of input shapes.

    Args:
        engine: The engine.
        shapes: The shapes of its inputs, by name.
        stream: The stream of all copies and runs.
        graph: Whether the kernels are launched as one CUDA graph.

    Raises:
        RuntimeFailure: if a shape is outside the engine's profile, or a call fails.
    """

    def __init__(self, engine: Engine, shapes: Shapes, stream: Stream, *, graph: bool) -> None:
        self._engine = engine
        self._context: Native = engine.new_context(graph=graph)
        self._graph: Graph | None = None
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise RuntimeFailure(
                    f"{engine.name}: {name!r} is outside the engine's profile",
                    got=shape,
                    expected=engine.profile(name),
                )
        names = (*engine.inputs, *engine.outputs)
        super().__init__(stream, {n: self._shape(n) for n in names}, engine.dtypes, engine.inputs)
        if graph and not engine.captures_by_itself:
            try:
                self._graph = Graph(stream, self._execute)
            except RuntimeFailure:
                super().close()
                raise

    def launch(self) -> None:  # noqa: D102
        if self._graph is None:
            self._execute()
        else:
            self._graph.launch(self.stream)

    def close(self) -> None:  # noqa: D102
        with ExitStack() as closing:
            closing.callback(super().close)
            if self._graph is not None:
                closing.push(self._graph)
        self._context = None

    def _bind(self) -> None:
        for name, buffer in self.buffers.items():
            bound = self._context.set_tensor_address(name, buffer.address)
            self._engine.require(bound, f"cannot bind {name!r}")

    def _execute(self) -> None:
        started = self._context.execute_async_v3(int(self.stream))
        self._engine.require(started, "execution failed")

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        self._engine.require(-1 not in shape, f"the shape of {name!r} is unknown: {shape}")
        return shape


class TensorRtRunner(OnDevice, Closing):
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
        self._bound = {}
        with ExitStack() as resources:
            self._engine = resources.enter_context(Engine(engine_path, self.name))
            self._stream = resources.enter_context(Stream())
            self.input_shapes = self._engine.input_shapes
            self._resources: ExitStack | None = resources.pop_all()

    def close(self) -> None:  # noqa: D102
        resources, self._resources = self._resources, None
        if resources is not None:
            with resources:  # the stream and the engine are the last to go
                self._forget()

    def _bound_to(self, inputs: Arrays, *, graph: bool) -> Bound:
        if self._resources is None:
            raise RuntimeFailure(f"{self.name}: the runner is closed")
        check_inputs(self, inputs, self._engine.dtypes)
        shapes = {name: tuple(inputs[name].shape) for name in self._engine.inputs}
        return self._keep(
            (graph, *shapes.values()),
            lambda: BoundContext(self._engine, shapes, self._stream, graph=graph),
        )
