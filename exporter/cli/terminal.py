"""What commands print: results to stdout, progress and messages to stderr. Only this prints."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

if TYPE_CHECKING:
    from exporter.run import OnProgress
    from exporter.sweep.table import Progress as SweepProgress


@contextmanager
def progress(*, shown: bool) -> Iterator[OnProgress]:
    """Show a bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda _stage, _fraction, _what: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[stage]:<8}"),
        BarColumn(30),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", stage="", what="", total=None)

        def on_progress(stage: str, fraction: float | None, what: str) -> None:
            if stage != bar.tasks[0].fields["stage"]:
                bar.reset(task, stage=stage)
            bar.update(
                task,
                stage=stage,
                what=what,
                completed=fraction or 0.0,
                total=None if fraction is None else 1.0,
            )

        yield on_progress


@contextmanager
def sweep_progress(*, shown: bool) -> Iterator[Callable[[SweepProgress], None]]:
    """Show on stderr, if that is a terminal, the cells done, the time left and what runs."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda _progress: None
        return
    columns = (
        SpinnerColumn(),
        MofNCompleteColumn(),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[what]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", left="", what="", total=None)

        def on_progress(now: SweepProgress) -> None:
            left = now.seconds_left
            bar.update(
                task,
                completed=now.settled,
                total=now.total,
                left="" if left is None else f"about {timedelta(seconds=round(left))} left",
                what=" | ".join(now.running),
            )

        yield on_progress


class Output(Console):
    """Standard output; rich's own class ends the process with exit code 1 where a pipe breaks."""

    def on_broken_pipe(self) -> None:
        """Go on: the reader has left, and the command's exit code does not depend on readers."""
        _drop(sys.stdout)


@contextmanager
def reader_may_leave(stream: TextIO) -> Iterator[None]:
    """Print to a pipe that its reader may close, as `head` does: the rest goes nowhere.

    The exit code tells what was done and proven. A reader that leaves does not change it.
    """
    try:
        yield
        stream.flush()  # else Python does it when it ends, complains, and gives exit code 120
    except BrokenPipeError:
        _drop(stream)


def _drop(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def show(what: RenderableType) -> None:
    """Print a result to stdout."""
    with reader_may_leave(sys.stdout):
        if isinstance(what, str):
            print(what)
        else:
            Output().print(what)


def show_trace(error: BaseException) -> None:
    """Print the trace of an error to stderr."""
    traceback.print_exception(error)


def say(message: str, code: int) -> int:
    """Print a message to stderr, and give the exit code."""
    with reader_may_leave(sys.stderr):
        print(f"tsformer: {message}", file=sys.stderr)
    return code
