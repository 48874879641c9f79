"""A worker process that answers one task after another, and is replaced when it dies or hangs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

HANG, DIED = "hang", "the process died"


class LostError(Exception):
    """The process gave no answer: its text is `HANG` or `DIED`."""


class Worker:
    """One process, started afresh by `spawn`.

    Args:
        work: Runs in the process. It takes two connections: it receives tasks from the first, and
            sends one answer for each to the second.
        seconds: The longest time for one task.
    """

    def __init__(self, work: Callable[[Any, Any], None], seconds: float) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._work, self._seconds = work, seconds
        self._start()

    def _start(self) -> None:
        tasks, self._tasks = self._context.Pipe(duplex=False)
        self._answers, answers = self._context.Pipe(duplex=False)
        self._process = self._context.Process(target=self._work, args=(tasks, answers), daemon=True)
        self._process.start()
        answers.close()  # so that the end of the process ends the pipe

    def ask(self, task: object) -> Any:  # noqa: ANN401  # whatever the work sends
        """Return the answer to a task.

        Raises:
            LostError: if the process dies or takes too long; it is replaced.
        """
        self._tasks.send(task)
        try:
            if self._answers.poll(self._seconds):
                return self._answers.recv()
            fault = HANG
        except EOFError:
            fault = DIED
        self.close()
        self._start()
        raise LostError(fault)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
