"""Run `exporter.to_engine.worker` as a child process: start it, read its messages, and end it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import IO, Any

from exporter.errors import EngineError
from exporter.files import child
from exporter.files.child import GRACE_SECONDS
from exporter.to_engine.progress import BuildProgress, PhaseTree

WORKER = "exporter.to_engine.worker"
_PIPE_BYTES = 2**20  # room for what a worker says before somebody listens (Linux only)
SHOWN_LINES = 5  # number of last lines of a dead worker that the error shows

OnProgress = Callable[[BuildProgress], None]


def ask_worker(request: dict[str, Any], on_progress: OnProgress) -> dict[str, Any]:
    """Run a worker on one request and return its answer.

    The worker ends when this call ends, whether by an answer, by an exception of `on_progress` or
    by Ctrl-C.

    Raises:
        EngineError: with the error message of the worker, or with the way it died.
    """
    with contextlib.closing(Worker(request)) as worker:
        return worker.answer(on_progress)


class Worker:
    """A worker at work on one request, beside this process. It ends when it is closed.

    It is a plain subprocess. `multiprocessing` would import the caller's script again, which breaks
    every script without a `__main__` guard.

    Args:
        request: What `exporter.to_engine.worker` takes.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        command, environment = child.command(WORKER)
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115  # it is open as long as the process
        start = partial(
            subprocess.Popen,
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            env=environment,
        )
        try:
            self._process = start(pipesize=_PIPE_BYTES)
        except OSError:  # this machine allows less; then the worker waits for a listener
            self._process = start()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at its start; `answer` says how
            line = json.dumps({**request, "parent": os.getpid()}).encode()
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def answer(self, on_progress: OnProgress) -> dict[str, Any]:
        """Report the progress, and return the answer.

        Raises:
            EngineError: with the error message of the worker, or with the way it died.
        """
        logged: deque[str] = deque(maxlen=SHOWN_LINES)
        try:
            answer = _listen(self._process, on_progress, logged)
        finally:
            _stop(self._process)
        if answer is None:
            raise EngineError(_describe_death(self._process.returncode, logged, self._noise))
        return answer

    def close(self) -> None:
        """End the worker, whatever it is doing."""
        _stop(self._process)
        self._noise.close()


def _listen(
    worker: subprocess.Popen[bytes], on_progress: OnProgress, logged: deque[str]
) -> dict[str, Any] | None:
    """Return the answer, or None if the worker ended without an answer."""
    assert worker.stdout is not None
    phases = PhaseTree()
    events = {"start": phases.start, "step": phases.step, "finish": phases.finish}
    for line in worker.stdout:
        if not line.endswith(b"\n"):  # the worker died in the middle of a line
            break
        message = json.loads(line)
        kind = message.pop("kind")
        if kind == "done":
            return message
        if kind == "failed":
            raise EngineError(message.pop("what"), **message)
        if kind == "log":
            logged.append(f"{message['severity']}: {message['text']}")
        else:
            on_progress(events[kind](**message))
    return None


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """End the worker: close its pipes, which cancels the build; then SIGTERM; then SIGKILL."""
    try:
        for pipe in (worker.stdin, worker.stdout):
            _close(pipe)
        for end in (lambda: None, worker.terminate):
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(GRACE_SECONDS)
                return
    finally:  # also after a second Ctrl-C
        worker.kill()
        worker.wait()


def _close(pipe: IO[bytes] | None) -> None:
    with contextlib.suppress(BrokenPipeError):
        if pipe is not None:
            pipe.close()


def _describe_death(returncode: int, logged: deque[str], noise: IO[bytes]) -> str:
    noise.seek(0)
    printed = noise.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
    last_output = " | ".join([*logged, *printed]) or "nothing"
    how = child.describe_end(returncode)
    return f"the process of TensorRT {how}; its last output: {last_output}"
