"""The parent's side of `exporter.to_engine.worker`: starts it, listens, and leaves none behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable
from typing import IO, Any

from exporter.errors import EngineError
from exporter.to_engine import child
from exporter.to_engine.child import GRACE_SECONDS
from exporter.to_engine.progress import BuildProgress, PhaseTree

WORKER = "exporter.to_engine.worker"
SHOWN_LINES = 5  # of what a worker said before it died

OnProgress = Callable[[BuildProgress], None]


def ask_worker(request: dict[str, Any], on_progress: OnProgress) -> dict[str, Any]:
    """Run a worker on one request and give its answer.

    Whatever ends this call (an answer, an exception of `on_progress`, Ctrl-C) ends the worker.
    It is a plain subprocess and not `multiprocessing`, which would import the caller's script
    once more and so break every script without a `__main__` guard.

    Raises:
        EngineError: with the worker's own words, or with how it died.
    """
    command, environment = child.command(WORKER)
    with tempfile.TemporaryFile() as noise:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            env=environment,
        )
        said: deque[str] = deque(maxlen=SHOWN_LINES)
        try:
            answer = _listen(worker, request, on_progress, said)
        finally:
            _stop(worker)
        if answer is None:
            raise EngineError(_how_it_died(worker.returncode, said, noise))
        return answer


def _listen(
    worker: subprocess.Popen[bytes],
    request: dict[str, Any],
    on_progress: OnProgress,
    said: deque[str],
) -> dict[str, Any] | None:
    """Give the answer, or None if the worker ended without one."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it died at its start: the caller tells how
        worker.stdin.write(json.dumps({**request, "parent": os.getpid()}).encode() + b"\n")
        worker.stdin.flush()
    phases = PhaseTree()
    events = {"start": phases.start, "step": phases.step, "finish": phases.finish}
    for line in worker.stdout:
        if not line.endswith(b"\n"):  # cut off by its death
            break
        message = json.loads(line)
        kind = message.pop("kind")
        if kind == "done":
            return message
        if kind == "failed":
            raise EngineError(message.pop("what"), **message)
        if kind == "log":
            said.append(f"{message['severity']}: {message['text']}")
        else:
            on_progress(events[kind](**message))
    return None


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """End the worker: by asking (closed pipes cancel a build), by SIGTERM, by SIGKILL."""
    try:
        for pipe in (worker.stdin, worker.stdout):
            _close(pipe)
        for end in (lambda: None, worker.terminate):
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(GRACE_SECONDS)
                return
    finally:  # a second Ctrl-C arrives here too
        worker.kill()
        worker.wait()


def _close(pipe: IO[bytes] | None) -> None:
    with contextlib.suppress(BrokenPipeError):
        if pipe is not None:
            pipe.close()


def _how_it_died(returncode: int, said: deque[str], noise: IO[bytes]) -> str:
    if returncode < 0:
        how = f"was killed by {signal.Signals(-returncode).name}"
    else:
        how = f"ended without an answer (exit code {returncode})"
    noise.seek(0)
    printed = noise.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
    last_words = " | ".join([*said, *printed]) or "nothing"
    return f"the process of TensorRT {how}; it said last: {last_words}"
