"""Read clips in worker processes beside the run of the model, in their order.

    with Readers(config, preprocessing, jobs=2) as readers:
        for clip in readers.read(paths, ahead=16):
            ...

A worker that dies, for example in a decoder, costs at most its clip: the clip is read once more in
a new worker, and is a bad clip if that one dies too.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.files import child
from exporter.inputs.dataset import Source, name_of
from exporter.predict.read import ReadClip, read_clip_or_reason
from exporter.runners.base import Closing
from model.config import ClipConfig
from model.preprocessing import Preprocessing


class Readers(Closing):
    """Worker processes that read clips for one model.

    Args:
        config: The sizes of the clips.
        preprocessing: The preprocessing of the model.
        jobs: Number of processes; 0 reads in this one.
    """

    def __init__(self, config: ClipConfig, preprocessing: Preprocessing, jobs: int) -> None:
        self._how, self._jobs = (config, preprocessing), jobs
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._guard, self._closed = threading.Lock(), False
        # The kernel ends a worker with the thread that started it, so the threads stay until the
        # end.
        self._threads = ThreadPoolExecutor(max(jobs, 1), thread_name_prefix="read")

    def read(self, sources: Iterable[Source], ahead: int) -> Iterator[ReadClip]:
        """Yield the clips in their order, and read up to `ahead` clips before they are taken.

        Raises:
            RuntimeFailure: if a worker cannot start.
        """
        if not self._jobs:
            yield from (read_clip_or_reason(source, *self._how) for source in sources)
            return
        waiting: deque[Future[ReadClip]] = deque()
        for source in sources:
            waiting.append(self._threads.submit(self._read, source))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """End the workers."""
        with self._guard:
            self._closed = True
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.release()

    def _read(self, source: Source) -> ReadClip:
        reason = ""
        for _ in range(2):
            worker = self._take()
            found = worker.read(source)
            if found is not None:
                self._idle.put(worker)
                return found
            reason = worker.last_words()
            with self._guard:
                if worker in self._workers:  # `close` has not released it
                    self._workers.remove(worker)
                    worker.release()
        return ReadClip(source, None, error=f"{name_of(source)}: the process that read it {reason}")

    def _take(self) -> _Worker:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        with self._guard:
            if self._closed:
                raise RuntimeFailure("reading clips was ended")
            worker = _Worker(*self._how)
            self._workers.append(worker)
        worker.wait_until_ready()
        return worker


class _Worker:
    """One process of `decode_worker`, and what it says."""

    def __init__(self, config: ClipConfig, preprocessing: Preprocessing) -> None:
        command, environment = child.command("exporter.predict.decode_worker")
        # There is a process for each core: threads of BLAS would only wait for one another.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115  # it is open as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal reaches the parent alone
        )
        self._to, self._from = _pipes(self._process)
        self._send(pickle.dumps((os.getpid(), config, preprocessing)).hex())

    def wait_until_ready(self) -> None:
        if not self._from.readline().endswith(b"\n"):
            raise RuntimeFailure(f"a process that reads clips {self.last_words()}")

    def read(self, source: Source) -> ReadClip | None:
        """Let the process read a clip; None if it died."""
        self._send(json.dumps(source if isinstance(source, int) else str(source)))
        line = self._from.readline()
        if not line.endswith(b"\n"):
            return None
        told: dict[str, Any] = json.loads(line)
        shape, array = told.pop("shape"), None
        if shape is not None:
            array = np.empty(shape, told.pop("dtype"))
            if self._from.readinto(array.data.cast("B")) != array.nbytes:
                return None
        return ReadClip(source, array, **told)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def release(self) -> None:
        """Close what belongs to a process that ended."""
        with contextlib.suppress(BrokenPipeError):
            self._to.close()
        self._from.close()
        self._noise.close()

    def last_words(self) -> str:
        """Say how the process ended."""
        code = self._process.wait()
        self._noise.seek(0)
        said = " ".join(self._noise.read().decode(errors="replace").split())[-200:]
        how = child.describe_end(code)
        return f"{how}: {said}" if said else how

    def _send(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died: reading its answer finds that too
            self._to.write(line.encode() + b"\n")
            self._to.flush()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
