"""The stages of a command: their progress while they run, and their time afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from exporter.machine.memory import peak_memory_mb, reset_peak_memory
from exporter.results import StageStatus

# Called with the name of the stage, the part of it that is done (0 to 1, or None if unknown), and
# what it is working on.
OnProgress = Callable[[str, float | None, str], None]


def no_progress(_stage: str, _fraction: float | None, _what: str) -> None:
    """Report nothing: the default of every `on_progress`."""


@dataclass
class Stage:
    """One running stage; the values set here go into its `StageStatus`."""

    name: str
    on_progress: OnProgress
    detail: str = ""
    skipped: bool = False
    failed: bool = False  # it says why in `detail`, and the export goes on without its result
    peak_memory_mb: float = 0.0  # of other processes, or before a reset within the stage

    def progress(self, fraction: float | None, what: str) -> None:
        """Report how much of the stage is done."""
        self.on_progress(self.name, fraction, what)


@dataclass
class Stages:
    """The stages that are done, in order."""

    on_progress: OnProgress
    done: list[StageStatus] = field(default_factory=list)

    @contextmanager
    def run(self, name: str) -> Iterator[Stage]:
        """Run one stage and record it; a stage that raises is not recorded."""
        stage = Stage(name, self.on_progress)
        stage.progress(None, "")
        reset_peak_memory()
        started = time.perf_counter()
        yield stage
        self.done.append(
            StageStatus(
                name,
                "failed" if stage.failed else "skipped" if stage.skipped else "done",
                time.perf_counter() - started,
                stage.detail,
                max(stage.peak_memory_mb, peak_memory_mb()),
            )
        )
