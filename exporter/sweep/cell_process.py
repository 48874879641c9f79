"""The sweep's side of `cell_worker`: starts cells, listens to them, and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from exporter.spec import ExportSpec
from exporter.to_engine import child
from exporter.to_engine.child import GRACE_SECONDS

OnStage = Callable[[str, str], None]


@dataclass(frozen=True)
class Order:
    """One cell to be made.

    Args:
        spec: What to export.
        out: The directory to make.
        lock: A file: shared by cells that work, held alone by the one that is timed.
        build_threads: Threads of all work but the timing.
        threads: Threads of what is timed.
    """

    spec: ExportSpec
    out: Path
    lock: Path
    build_threads: int
    threads: int


class CellProcesses:
    """Runs cells, each in a process of its own, from any number of threads."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self._guard = threading.Lock()
        self._stopping = False

    def run(self, order: Order, on_stage: OnStage = lambda _stage, _what: None) -> str | None:
        """Make one cell; gives why it failed, or None."""
        with tempfile.TemporaryFile() as noise:
            with self._guard:
                if self._stopping:
                    return "interrupted"
                worker = _start(noise)
                self._running.append(worker)
            try:
                ended, reason = _converse(worker, order, on_stage)
                code = worker.wait()
            finally:
                _close(worker)
                with self._guard:
                    self._running.remove(worker)
            return reason if ended else _how_it_died(code, noise)

    def stop(self) -> None:
        """End all that run, and start no more; what they have half made goes with them."""
        with self._guard:
            self._stopping = True
            running = list(self._running)
        for worker in running:
            with contextlib.suppress(OSError, ValueError):
                worker.stdin.close()  # type: ignore[union-attr]  # it asked for a pipe
        for worker in running:
            try:
                worker.wait(2 * GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()


def _start(noise: IO[bytes]) -> subprocess.Popen[bytes]:
    command, environment = child.command("exporter.sweep.cell_worker")
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=noise,
        env=environment,
        start_new_session=True,  # Ctrl-C of a terminal reaches its whole group: we decide
    )


def _converse(
    worker: subprocess.Popen[bytes], order: Order, on_stage: OnStage
) -> tuple[bool, str | None]:
    """Whether the worker came to an end of its own, and why it failed if it did."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    request: dict[str, Any] = {
        "spec": order.spec.to_dict(),
        "out": str(order.out),
        "lock": str(order.lock),
        "build_threads": order.build_threads,
        "threads": order.threads,
        "parent": os.getpid(),
    }
    with contextlib.suppress(BrokenPipeError):  # it died at its start: its end tells how
        worker.stdin.write(json.dumps(request).encode() + b"\n")
        worker.stdin.flush()
    for line in worker.stdout:
        if not line.endswith(b"\n"):  # cut off by its death
            break
        message = json.loads(line)
        if message["kind"] == "stage":
            on_stage(message["stage"], message["what"])
        else:
            return True, message.get("reason")
    return False, None


def _close(worker: subprocess.Popen[bytes]) -> None:
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def _how_it_died(code: int, noise: IO[bytes]) -> str:
    noise.seek(0)
    printed = noise.read().decode(errors="replace").split()
    last_words = " ".join(printed)[-300:] or "nothing"
    if code == -signal.SIGKILL:
        return "its process was killed, as the system does when memory runs out"
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}; it said last: {last_words}"
    return f"its process ended without an answer (exit code {code}); it said last: {last_words}"
