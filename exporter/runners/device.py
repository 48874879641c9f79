"""What runners on a GPU share: buffers that are made once for each set of input shapes, and time.

`transfers_included` is true of `run`, which goes from host memory to host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.runners.base import Arrays, Closing
from exporter.runners.cuda_stream import Buffer, Stream, time_runs

MOST_BOUND = 4  # the buffers of so many sets of input shapes are kept
WARMUP_RUNS = 3  # libraries compile, allocate and capture in them

Shapes = Mapping[str, tuple[int, ...]]


class Bound(Closing):
    """Buffers for one set of input shapes, and the launch of a run on them.

    Args:
        stream: The stream of all copies and runs.
        shapes: The shapes of all inputs and outputs, by name.
        dtypes: Their types.
        inputs: The names of the inputs; the others are outputs.
    """

    def __init__(
        self, stream: Stream, shapes: Shapes, dtypes: Mapping[str, str], inputs: list[str]
    ) -> None:
        self.stream = stream
        self._inputs = inputs
        with ExitStack() as resources:
            self.buffers = {
                name: resources.enter_context(Buffer(shape, dtypes[name]))
                for name, shape in shapes.items()
            }
            self._bind()
            self._resources = resources.pop_all()

    def _bind(self) -> None:
        """Tell the runtime the addresses of the buffers."""
        raise NotImplementedError

    def launch(self) -> None:
        """Put one run on the stream."""
        raise NotImplementedError

    def upload(self, inputs: Arrays) -> None:
        """Copy the inputs to the GPU."""
        for name in self._inputs:
            self.buffers[name].upload(inputs[name], self.stream)

    def download(self) -> dict[str, np.ndarray]:
        """Wait for the runs; copy the outputs of the last one to the host."""
        outputs = {n: buffer for n, buffer in self.buffers.items() if n not in self._inputs}
        for buffer in outputs.values():
            buffer.download(self.stream)
        self.stream.synchronize()
        return {name: buffer.array.copy() for name, buffer in outputs.items()}

    def close(self) -> None:  # noqa: D102
        self._resources.close()


class OnDevice:
    """The methods of a runner whose runs are bound to buffers of the GPU."""

    _stream: Stream
    _cuda_graph: bool
    _bound: dict[tuple[object, ...], Bound]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run the model once; names, shapes and dtypes must be those of the model."""
        bound = self._bound_to(inputs, graph=self._cuda_graph)
        bound.upload(inputs)
        bound.launch()
        return bound.download()

    def device_seconds(self, inputs: Arrays, runs: int, *, graph: bool) -> list[float]:
        """Time runs on the GPU alone, in seconds: events around the kernels, no transfer.

        ONNX Runtime waits for a graph itself: there a time has the return from this wait too.

        Args:
            inputs: The inputs; they are copied to the GPU once, before the first run.
            runs: The number of runs.
            graph: Whether the kernels are launched as one CUDA graph.
        """
        bound = self._bound_to(inputs, graph=graph)
        bound.upload(inputs)
        for _ in range(WARMUP_RUNS):
            bound.launch()
        self._stream.synchronize()
        return time_runs(self._stream, bound.launch, runs)

    def _bound_to(self, inputs: Arrays, *, graph: bool) -> Bound:
        """Return the buffers for these inputs."""
        raise NotImplementedError

    def _keep(self, key: tuple[object, ...], make: Callable[[], Bound]) -> Bound:
        """Return what is kept for a key; make it at the first call, and let the oldest go."""
        if key not in self._bound:
            if len(self._bound) == MOST_BOUND:
                self._bound.pop(next(iter(self._bound))).close()
            self._bound[key] = make()
        return self._bound[key]

    def _forget(self) -> None:
        """Wait for the GPU, then free all buffers."""
        with ExitStack() as closing, suppress(RuntimeFailure):  # a run told of a fault before
            for bound in self._bound.values():
                closing.push(bound)
            self._bound = {}
            self._stream.synchronize()
