"""Shared code of all child processes of this project: a child ends when its parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

GRACE_SECONDS = 3.0  # the time that cancelled work has to stop


def die_with(parent: int) -> None:
    """Ask the kernel to end this process with its parent (Linux only).

    On other systems, EOF on stdin ends the process: see `wait_for_end_of_input`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of linux/prctl.h
    # On Windows the parent of a virtual environment's Python is a launcher: not the real parent.
    if os.name == "posix" and os.getppid() != parent:  # the parent ended before the call above
        os._exit(1)


def command(module: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment that run one of our modules as a process.

    The child has the import path of this process. The content of the current directory does not
    change the imports.
    """
    # abspath also resolves "", which stands for the current directory.
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)  # noqa: PTH100
    return [sys.executable, "-P", "-m", module], {**os.environ, "PYTHONPATH": path}


def describe_end(code: int) -> str:
    """Say how a child ended that owed an answer; `code` is that of `subprocess`."""
    if code >= 0:
        return f"ended without an answer (exit code {code})"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # real-time signals have no names
        return f"was killed by signal {-code}"


def wait_for_end_of_input() -> None:
    """Return when the parent closes the standard input of this process, or dies."""
    while os.read(0, 64):
        pass


def end_after_grace() -> None:
    """Wait until cancelled work has had time to stop, then end this process unconditionally."""
    time.sleep(GRACE_SECONDS)
    os._exit(1)
