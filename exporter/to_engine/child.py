"""What every child process of this project does: it ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

GRACE_SECONDS = 3.0  # how long work may take to notice that it is cancelled


def die_with(parent: int) -> None:
    """Let the kernel end this process with its parent, where it can; EOF on stdin does the rest."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of linux/prctl.h
    # On Windows the parent of a virtual environment's Python is a launcher, not who started it.
    if os.name == "posix" and os.getppid() != parent:  # it was gone before we asked
        os._exit(1)


def command(module: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that run one of our modules as a process.

    It imports what this process imports, in the same order, whatever the current directory holds.
    """
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)  # noqa: PTH100  # "" too
    return [sys.executable, "-P", "-m", module], {**os.environ, "PYTHONPATH": path}


def wait_for_end_of_input() -> None:
    """Return when the parent closes this process's standard input, or dies."""
    while os.read(0, 64):
        pass


def end_after_grace() -> None:
    """End this process, whatever it does, once work has had time to notice that it is cancelled."""
    time.sleep(GRACE_SECONDS)
    os._exit(1)
