"""Streams, buffers, events and graphs of CUDA. Each of them frees itself at the end of its context.

with Stream() as stream, Buffer((1, 3), "float32") as video:
    video.upload(clip, stream)
    stream.synchronize()
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.runners.base import Closing
from exporter.runners.cuda import call, constant


class Stream(Closing):
    """A queue of the GPU: what is put on it runs in that order, while the host goes on."""

    def __init__(self) -> None:
        # The default stream waits for all others, and cannot be captured.
        self._stream = call("cudaStreamCreateWithFlags", constant("cudaStreamNonBlocking"))

    def __int__(self) -> int:
        """Return the address that other libraries take."""
        return int(self._stream)

    @property
    def native(self) -> object:
        """The object of cuda-bindings."""
        return self._stream

    def synchronize(self) -> None:
        """Wait until everything on the stream has run."""
        call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:  # noqa: D102
        call("cudaStreamDestroy", self._stream)


class Buffer(Closing):
    """One tensor twice: in memory of the GPU, and in pinned memory of the host.

    `array` is the pinned memory. Copies from and to it do not block the host.
    """

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        used = math.prod(shape) * np.dtype(dtype).itemsize
        self._size = max(used, 1)
        self.address: int = call("cudaMalloc", self._size)
        try:
            self._pinned: int = call("cudaMallocHost", self._size)
        except RuntimeFailure:
            call("cudaFree", self.address)
            raise
        memory = (ctypes.c_byte * self._size).from_address(self._pinned)
        self.array = np.ctypeslib.as_array(memory)[:used].view(dtype).reshape(shape)

    def upload(self, array: np.ndarray, stream: Stream) -> None:
        """Copy an array to the GPU; the stream must have no copy of this buffer under way."""
        np.copyto(self.array, array, casting="no")
        self._copy(self.address, self._pinned, "cudaMemcpyHostToDevice", stream)

    def download(self, stream: Stream) -> None:
        """Copy the tensor from the GPU into `array`, which is valid once the stream has run."""
        self._copy(self._pinned, self.address, "cudaMemcpyDeviceToHost", stream)

    def _copy(self, target: int, source: int, kind: str, stream: Stream) -> None:
        direction = getattr(constant("cudaMemcpyKind"), kind)
        call("cudaMemcpyAsync", target, source, self._size, direction, stream.native)

    def close(self) -> None:  # noqa: D102
        del self.array
        try:
            call("cudaFreeHost", self._pinned)
        finally:
            call("cudaFree", self.address)


class Event(Closing):
    """A mark on a stream, with the time at which the GPU reached it."""

    def __init__(self) -> None:
        self._event = call("cudaEventCreate")

    def record(self, stream: Stream) -> None:
        """Put the mark on a stream."""
        call("cudaEventRecord", self._event, stream.native)

    def synchronize(self) -> None:
        """Wait until the GPU reaches the mark."""
        call("cudaEventSynchronize", self._event)

    def seconds_since(self, start: Event) -> float:
        """Return the seconds from another mark to this one; the GPU must have reached both."""
        return call("cudaEventElapsedTime", start._event, self._event) / 1e3

    def close(self) -> None:  # noqa: D102
        call("cudaEventDestroy", self._event)


class Graph(Closing):
    """What a function puts on a stream, captured once; it is replayed by one launch.

    Args:
        stream: The stream; it must be idle.
        launch: The function. It runs once without capture, so that libraries allocate and tune.
    """

    def __init__(self, stream: Stream, launch: Callable[[], None]) -> None:
        launch()
        stream.synchronize()
        graph = _capture(stream, launch)
        try:
            self._executable = call("cudaGraphInstantiate", graph, 0)
        finally:
            call("cudaGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Put the whole graph on a stream."""
        call("cudaGraphLaunch", self._executable, stream.native)

    def close(self) -> None:  # noqa: D102
        call("cudaGraphExecDestroy", self._executable)


def _capture(stream: Stream, launch: Callable[[], None]) -> object:
    # "ThreadLocal": calls of other threads do not break the capture.
    mode = constant("cudaStreamCaptureMode").cudaStreamCaptureModeThreadLocal
    call("cudaStreamBeginCapture", stream.native, mode)
    try:
        launch()
    except BaseException:
        with suppress(RuntimeFailure):  # the end of a failed capture reports the same fault
            call("cudaGraphDestroy", call("cudaStreamEndCapture", stream.native))
        raise
    return call("cudaStreamEndCapture", stream.native)


def time_runs(stream: Stream, launch: Callable[[], None], runs: int) -> list[float]:
    """Time runs by events, in seconds; each run starts when the one before has ended."""
    seconds = []
    with Event() as start, Event() as end:
        for _ in range(runs):
            start.record(stream)
            launch()
            end.record(stream)
            end.synchronize()
            seconds.append(end.seconds_since(start))
    return seconds
