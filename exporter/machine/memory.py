"""Peak resident memory of this process since the last reset."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Reset the peak (only on Linux; elsewhere it is the peak of the whole process)."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # resets VmHWM, see proc(5)


def peak_memory_mb() -> float:
    """Peak resident memory in MiB."""
    told = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
    if told:
        return int(told[1]) / 1024
    import resource  # not on Windows; a sandbox may tell nothing else

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
