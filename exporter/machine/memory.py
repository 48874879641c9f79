"""Memory of this process: its peak since the last reset, and the limit of its addresses."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from exporter.errors import MachineError

LEAST_ADDRESSES_MB = 1500  # PyTorch, ONNX Runtime and OpenVINO in one process, and a tiny model
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


def require_addresses() -> None:
    """Raise `MachineError` if `ulimit -v` leaves no room for an export.

    Libraries that cannot map their memory print, or end the process, in ways of their own.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESSES_MB * 2**20:
        raise MachineError(
            "there is not enough memory for an export",
            got=f"a limit of {limit // 2**20} MiB of address space",
            expected=f"at least {LEAST_ADDRESSES_MB} MiB",
            remedy="raise it with ulimit -v",
        )
