"""What commands show: results on stdout, progress and messages on stderr. Nothing else prints."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

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
from rich.text import Text

if TYPE_CHECKING:
    from exporter.run import OnProgress
    from exporter.sweep.table import Progress as SweepProgress


@contextmanager
def progress(*, shown: bool) -> Iterator[OnProgress]:
    """A bar on a terminal's stderr; nothing where nobody looks."""
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
    """A bar over the cells of a sweep, with the time left and what runs, on a terminal's stderr."""
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


class _Output(Console):
    """Standard output; rich's own would end the process with exit code 1 where a pipe breaks."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show(what: RenderableType) -> None:
    """Print to a reader who may have left: that changes no verdict and no exit code."""
    try:
        if isinstance(what, str):
            print(what)
        else:
            _Output().print(what)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plain(text: str) -> Text:
    """Make terminal text of foreign text: no markup, no control characters, nothing unprintable."""
    shown = (c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return Text("".join(shown))


def show_trace(error: BaseException) -> None:
    """Print the trace of an error to stderr."""
    traceback.print_exception(error)


def say(message: str, code: int) -> int:
    """Print a message to stderr, and give the exit code."""
    print(f"tsformer: {message}", file=sys.stderr)
    return code
