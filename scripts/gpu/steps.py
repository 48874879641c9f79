"""The steps of a cell, as commands of tsformer in this process, within a time limit."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal

from exporter.cli import main

INTERRUPTED, NOT_PROVEN = 130, 5
Status = Literal["done", "failed", "left out"]


@dataclass(frozen=True)
class Step:
    """One step of a cell: how it ended, and what it printed as JSON."""

    cell: str
    step: str
    status: Status
    seconds: float = 0.0
    reason: str = ""
    found: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class Budget:
    """The time limit, and how long each kind of step took so far, for each pixel."""

    limit: float
    started: float = field(default_factory=time.monotonic)
    longest: dict[str, float] = field(default_factory=dict)

    def left(self) -> float:
        """Return the seconds until the limit."""
        return self.limit - (time.monotonic() - self.started)

    def allows(self, step: str, pixels: int) -> bool:
        """Tell whether a step can end in time, judged by the earlier ones."""
        return self.longest.get(step, 0.0) * pixels < self.left()

    def note(self, step: str, pixels: int, seconds: float) -> None:
        """Record how long a step took."""
        self.longest[step] = max(self.longest.get(step, 0.0), seconds / pixels)

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Interrupt what runs at the limit, as Ctrl-C does."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            raise KeyboardInterrupt("the time limit")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(min(self.left(), 1e6), 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def run_command(budget: Budget, cell: str, pixels: int, arguments: Sequence[object]) -> Step:
    """Run one command of tsformer; what it prints as JSON becomes the result of the step."""
    words = [str(word) for word in arguments]
    out, said = io.StringIO(), io.StringIO()

    def command() -> tuple[Status, str, dict[str, Any]]:
        with redirect_stdout(out), redirect_stderr(said):
            code = main(words)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        text = out.getvalue()
        found = json.loads(text) if "--json" in words and text.startswith("{") else {}
        reason = " ".join(said.getvalue().split())
        # A verdict other than pass is a result.
        done = code == 0 or (code == NOT_PROVEN and (found or words[0] == "export"))
        return "done" if done else "failed", reason if code else "", found

    return run_step(budget, cell, words[0], pixels, command)


def run_step(
    budget: Budget,
    cell: str,
    name: str,
    pixels: int,
    work: Callable[[], tuple[Status, str, dict[str, Any]]],
) -> Step:
    """Run one step, unless the time that is left is too short for it."""
    late = f"time limit of {budget.limit:g} s"
    if budget.left() <= 0 or not budget.allows(name, pixels):
        return Step(cell, name, "left out", reason=late)
    started = time.monotonic()
    try:
        with budget.enforced():
            status, reason, found = work()
    except KeyboardInterrupt:
        if budget.left() > 0.5:
            raise  # it was the user
        status, reason, found = "left out", late, {}
    except Exception as error:  # other cells may still work
        text = " ".join(str(error).split())[:300]
        status, reason, found = "failed", f"{type(error).__name__}: {text}", {}
    seconds = time.monotonic() - started
    budget.note(name, pixels, seconds)
    return Step(cell, name, status, round(seconds, 2), reason, found)


def rows_of(cell: str, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Join the latency of `bench` and the parity of `verify` by runtime and device."""
    parity, rows = {}, []
    for step in steps:
        for row in step.found.get("parity", ()):
            parity[row["runtime"], row["device"]] = row
    for step in steps:
        for row in step.found.get("latency", ()):
            judged = parity.get((row["runtime"], row["device"]), {})
            kept = {name: fact for name, fact in row.items() if name != "samples_ms"}
            verdict = {name: judged.get(name) for name in ("verdict", "rel_l2", "tolerance")}
            rows.append({"cell": cell, **verdict, **kept})  # a peer has its own error
    return rows
