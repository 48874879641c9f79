"""Print results to stdout, and progress and messages to stderr. Only this file prints."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.table import Column

from exporter.report.escape import one_line, printable

if TYPE_CHECKING:
    from exporter.run.stages import OnProgress
    from exporter.sweep.table import Progress as SweepProgress


@contextmanager
def progress(*, shown: bool) -> Iterator[OnProgress]:
    """Show a progress bar on stderr, if stderr is a terminal."""
    console = Output(stderr=True)
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


def counting(stage: str, on_progress: OnProgress) -> Callable[[int, int, str], None]:
    """Tell the progress of clips from now on: how many are done, and the time left."""
    started = time.monotonic()

    def on_clip(done: int, total: int, clip: str) -> None:
        left = time_left(started, done / total)
        on_progress(stage, done / total, f"{done} of {total}, {left}: {clip}")

    return on_clip


def time_left(started: float, fraction: float) -> str:
    """Say how much time is left of work that began at `time.monotonic()` = `started`."""
    if fraction <= 0:
        return "time left unknown"
    return _about((time.monotonic() - started) * (1 - fraction) / fraction)


def _about(seconds: float) -> str:
    return f"about {timedelta(seconds=round(seconds))} left"


@contextmanager
def kept_in(place: Path | None) -> Iterator[None]:
    """Let an interrupt say that the work done is kept in a file or directory, if it is there."""
    try:
        yield
    except KeyboardInterrupt as error:
        if place is None or not place.exists():
            raise
        raise KeyboardInterrupt(
            f"what is finished is kept in {place}; the same command goes on from there"
        ) from error


def read_stdin() -> str:
    """Read standard input to its end, as text that may hold any bytes."""
    return "" if sys.stdin is None else os.fsdecode(sys.stdin.buffer.read())


@contextmanager
def sweep_progress(*, shown: bool) -> Iterator[Callable[[SweepProgress], None]]:
    """Show finished cells, time left and running cells on stderr, if stderr is a terminal."""
    console = Output(stderr=True)
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
                left="" if left is None else _about(left),
                what=" | ".join(now.running),
            )

        yield on_progress


class Output(Console):
    """A console that prints no foreign control characters, and survives a stream that fails."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does; text that others wrote cannot move the cursor or turn the text."""
        for segment in super().render(renderable, options):
            inert = segment.control or segment.text.isprintable()
            yield segment if inert else Segment(printable(segment.text), segment.style)

    def print(self, *objects: object, **options: Any) -> None:  # noqa: ANN401  # rich has a dozen
        """Print, if the stream is open."""
        if self.file is not None:  # Python's value for a stream that was closed before the start
            with may_fail(sys.stderr if self.stderr else sys.stdout):
                super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Continue: the exit code of a command does not depend on the reader of its output."""
        _drop(sys.stderr if self.stderr else sys.stdout)


@contextmanager
def may_fail(stream: TextIO | None) -> Iterator[None]:
    """Print to a stream that may fail: a pipe that `head` closed, or a disk that is full.

    The exit code describes the work and the proof, so a failure drops the rest of the output. A
    failure of another kind than a closed pipe is said on stderr. The stream is None if it was
    closed before the start.
    """
    try:
        yield
        if stream is not None:
            stream.flush()  # without it Python flushes at exit, prints an error and exits with 120
    except OSError as error:
        if stream is not None:
            _drop(stream)
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            say(f"output: nothing could be printed: {error.strerror}; redirect it elsewhere", 0)


def _drop(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def accept_any_text() -> None:
    """Let streams of few characters (LANG=C) replace the others, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def show(what: RenderableType) -> None:
    """Print a result to stdout."""
    if sys.stdout is None:
        return
    if isinstance(what, str):
        with may_fail(sys.stdout):
            print(_visible(what), flush=True)  # a row of a live source is read at once
    else:
        Output().print(what)


def _visible(text: str) -> str:
    """Write what a terminal cannot print as JSON does, so that programs read the same text."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


def show_trace(error: BaseException) -> None:
    """Print the trace of an error to stderr."""
    with may_fail(sys.stderr):
        print(printable("".join(traceback.format_exception(error))), file=sys.stderr)


def say(message: str, code: int) -> int:
    """Print a message to stderr, and return the exit code."""
    if sys.stderr is not None:  # `print` would write to stdout instead
        with may_fail(sys.stderr):
            print(f"tsformer: {printable(one_line(message))}", file=sys.stderr)
    return code
