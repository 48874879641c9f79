"""Run `cell_worker` as child processes: start cells, read their messages, and end them."""

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

from exporter.files import child
from exporter.files.child import GRACE_SECONDS
from exporter.spec import ExportSpec

OnStage = Callable[[str, str], None]


@dataclass(frozen=True)
class Order:
    """The order to make one cell.

    Args:
        spec: The export to make.
        out: The directory to make.
        lock: A lock file. A working cell holds a shared lock; a cell that is timed holds an
            exclusive lock.
        build_threads: Number of threads for all work except the timing.
        threads: Number of threads for the timing.
    """

    spec: ExportSpec
    out: Path
    lock: Path
    build_threads: int
    threads: int


class CellProcesses:
    """Runs each cell in a separate process. Several threads may call `run` at the same time."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self._guard = threading.Lock()
        self._stopping = False

    def run(self, order: Order, on_stage: OnStage = lambda _stage, _what: None) -> str | None:
        """Make one cell; return the reason of a failure, or None."""
        with tempfile.TemporaryFile() as noise:
            with self._guard:
                if self._stopping:
                    return "interrupted"
                worker = _start(noise)
                self._running.append(worker)
            try:
                answered, reason = _exchange(worker, order, on_stage)
                code = worker.wait()
            finally:
                _close(worker)
                with self._guard:
                    self._running.remove(worker)
            return reason if answered else _describe_death(code, noise)

    def stop(self) -> None:
        """End all running cells and start no more. A cell removes its partial output."""
        with self._guard:
            self._stopping = True
            running = list(self._running)
        for worker in running:
            with contextlib.suppress(OSError, ValueError):
                worker.stdin.close()  # type: ignore[union-attr]  # `_start` opens a pipe
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
        # Ctrl-C in a terminal reaches the whole process group. The sweep decides what to do.
        start_new_session=True,
    )


def _exchange(
    worker: subprocess.Popen[bytes], order: Order, on_stage: OnStage
) -> tuple[bool, str | None]:
    """Send the order and read messages; return whether the worker answered, and its failure."""
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
    # If the worker died at its start, `_describe_death` says how.
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(json.dumps(request).encode() + b"\n")
        worker.stdin.flush()
    for line in worker.stdout:
        if not line.endswith(b"\n"):  # the worker died in the middle of a line
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


def _describe_death(code: int, noise: IO[bytes]) -> str:
    noise.seek(0)
    printed = noise.read().decode(errors="replace").split()
    last_output = " ".join(printed)[-300:] or "nothing"
    if code == -signal.SIGKILL:
        return "its process was killed; the system does this when memory runs out"
    return f"its process {child.describe_end(code)}; its last output: {last_output}"
