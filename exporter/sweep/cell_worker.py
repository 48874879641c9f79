"""One cell of a sweep in its own process: a crash ends the cell, not the sweep.

Run by `cell_process`. A line of JSON on stdin says what to export; lines of JSON on stdout
say how far it is. It ends when stdin ends.
"""

from __future__ import annotations

import _thread
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.errors import TsformerError
from exporter.errors.machine import of_the_machine
from exporter.files.child import die_with, end_after_grace, wait_for_end_of_input
from exporter.files.lock import Lock
from exporter.spec import ExportSpec

Tell = Callable[..., None]


def main() -> None:
    """Export what stdin asks for."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to stdout: that must not reach the protocol

    def tell(kind: str, **facts: object) -> None:
        out.write(json.dumps({"kind": kind, **facts}) + "\n")
        out.flush()

    with os.fdopen(0, "rb", buffering=0, closefd=False) as stdin:
        request = json.loads(stdin.readline())
    die_with(request["parent"])
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        _export(request, tell)
    except Exception as error:  # a defect is a row of the sweep too
        tell("failed", reason=_reason(of_the_machine(error)))
    else:
        tell("done")


def _reason(error: Exception) -> str:
    if isinstance(error, TsformerError):
        return f"{error.stage}: {error}"
    return " ".join(f"internal: {type(error).__name__}: {error}".split())[:500]


def _export(request: dict[str, Any], tell: Tell) -> None:
    with Lock(Path(request["lock"]), create=True) as lock:
        lock.shared()  # before torch is imported: that is work too
        import torch

        from exporter.pipeline import export

        torch.set_num_threads(request["build_threads"])

        @contextmanager
        def measuring() -> Iterator[None]:
            tell("stage", stage="waiting", what="for the other cells, to be timed alone")
            lock.exclusive()
            torch.set_num_threads(request["threads"])
            yield
            lock.shared()

        export(
            # The sweep divides the threads.
            replace(ExportSpec.from_dict(request["spec"]), threads=None),
            Path(request["out"]),
            force=True,
            on_progress=lambda stage, _fraction, what: tell("stage", stage=stage, what=what),
            measuring=measuring,
        )


def _end_with_stdin() -> None:
    """Interrupt the export when the sweep hangs up, and end the process if it does not notice."""
    wait_for_end_of_input()
    _thread.interrupt_main()
    end_after_grace()


if __name__ == "__main__":
    main()
