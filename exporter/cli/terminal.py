"""Print results to stdout, and progress and messages to stderr. Only this file prints."""

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
    from exporter.stages import OnProgress
    from exporter.sweep.table import Progress as SweepProgress


@contextmanager
def progress(*, shown: bool) -> Iterator[OnProgress]:
    """Show a progress bar on stderr, if stderr is a terminal."""
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
    """Show finished cells, time left and running cells on stderr, if stderr is a terminal."""
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
    """Standard output that survives a broken pipe; rich's own class exits with code 1."""

    def on_broken_pipe(self) -> None:
        """Continue: the exit code of a command does not depend on the reader of its output."""
        _drop(sys.stdout)


@contextmanager
def reader_may_leave(stream: TextIO | None) -> Iterator[None]:
    """Print to a pipe that its reader may close, as `head` does; drop the rest of the output.

    The exit code describes the work and the proof. A closed pipe does not change it, nor does a
    stream that was closed before the start, which Python gives as None.
    """
    try:
        yield
        if stream is not None:
            stream.flush()  # without it Python flushes at exit, prints an error and exits with 120
    except BrokenPipeError:
        if stream is not None:
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
    with reader_may_leave(sys.stderr):
        traceback.print_exception(error)


def say(message: str, code: int) -> int:
    """Print a message to stderr, and return the exit code."""
    if sys.stderr is not None:  # `print` would write to stdout instead
        with reader_may_leave(sys.stderr):
            print(f"tsformer: {message}", file=sys.stderr)
    return code
