"""Times the stages of one export, measures their memory, and says which one is running."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from exporter.memory import peak_memory_mb, reset_peak_memory
from exporter.results import StageStatus

# Called with the stage, how much of it is done (in [0, 1], or None if unknown), and with what.
OnProgress = Callable[[str, float | None, str], None]


@dataclass
class Stage:
    """One running stage; what it sets here goes into its `StageStatus`."""

    name: str
    on_progress: OnProgress
    detail: str = ""
    skipped: bool = False
    peak_memory_mb: float = 0.0  # of other processes, or before a reset within the stage

    def progress(self, fraction: float | None, what: str) -> None:
        """Tell how far the stage is."""
        self.on_progress(self.name, fraction, what)


@dataclass
class Stages:
    """The stages so far, in order."""

    on_progress: OnProgress
    done: list[StageStatus] = field(default_factory=list)

    @contextmanager
    def run(self, name: str) -> Iterator[Stage]:
        """Run one stage; an exception leaves it unrecorded, since nothing is delivered then."""
        stage = Stage(name, self.on_progress)
        stage.progress(None, "")
        reset_peak_memory()
        started = time.perf_counter()
        yield stage
        self.done.append(
            StageStatus(
                name,
                "skipped" if stage.skipped else "done",
                time.perf_counter() - started,
                stage.detail,
                max(stage.peak_memory_mb, peak_memory_mb()),
            )
        )
