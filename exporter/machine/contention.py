"""How busy other processes keep this machine, which makes timings irreproducible."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_STAT = Path("/proc/stat")


class Contention:
    """Measures the processor time of other processes during a `with` block.

    Afterwards `cores` is the mean number of cores that they kept busy; None if the system does not
    report it (only Linux does).
    """

    cores: float | None = None

    def __enter__(self) -> Self:
        self._started, self._busy, self._own = _read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ended, busy, own = _read()
        if busy is None or self._busy is None or ended <= self._started:
            return
        others = (busy - self._busy) - (own - self._own)
        self.cores = max(0.0, others / (ended - self._started))


def _read() -> tuple[float, float | None, float]:
    """Read wall-clock time and processor time of all processes and of this one, in seconds."""
    times = os.times()
    busy = None
    if _STAT.exists():
        user, nice, system, _, _, irq, softirq, *_ = map(
            int, _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
        )
        busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, times.user + times.system
