"""How many cores this process may use: the least of its affinity and the CPU quota of its cgroup.

A container with a quota of one CPU still sees every core of its machine. Two threads then use up
the quota in half of each period and wait for the rest of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc/self")


def usable_cores(proc: Path = _PROC) -> int | None:
    """Count the cores that this process may use, at least 1; None where the system does not say."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    quota = cpu_quota(proc)
    if quota is None:
        return cores
    whole = max(1, int(quota))  # with a thread for a fraction of a core, all threads wait for it
    return whole if cores is None else min(cores, whole)


def cpu_quota(proc: Path = _PROC) -> float | None:
    """Return the CPUs that the cgroups of this process allow, or None without a limit.

    Both versions of cgroups are read, as proc(5) and cgroups(7) describe their files: the limit is
    the least one from the group of the process up to the root that it sees.

    Args:
        proc: The folder of the process, with the files `cgroup` and `mountinfo`.
    """
    quotas = [quota for folder in _folders(proc) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def limit_threads() -> None:
    """Let torch, OpenMP and BLAS start no more threads than the quota, unless the user says so.

    They read the variable when they are imported, and count the cores of the affinity otherwise.
    Processes started from here inherit it.
    """
    cores = usable_cores()
    if cores is not None and cpu_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def _folders(proc: Path) -> Iterator[Path]:
    """Yield the folders of the CPU limits of a process, from its group up to the root."""
    groups = {}
    for line in _lines(proc / "cgroup"):  # 4:cpu,cpuacct:/docker/1f or 0::/docker/1f
        number, names, path = line.split(":", 2)
        if number == "0" or "cpu" in names.split(","):
            groups["cgroup2" if number == "0" else "cgroup"] = path
    for line in _lines(proc / "mountinfo"):
        # 30 23 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct
        mounted, _, described = line.partition(" - ")
        kind, _, options = described.split(" ", 2)
        if kind not in groups or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        root, point = mounted.split(" ")[3:5]
        yield from _upward(Path(point), _below(root, groups[kind]))


def _below(root: str, path: str) -> str:
    """Return the path of a group below the mounted one; a container mounts its own as the root."""
    if root != "/" and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :]
    return path if root == "/" else ""


def _upward(point: Path, path: str) -> Iterator[Path]:
    steps = [step for step in path.split("/") if step not in ("", "..")]
    for depth in range(len(steps), -1, -1):
        yield point.joinpath(*steps[:depth])


def _quota(folder: Path) -> float | None:
    """Read the limit of one group: `cpu.max` of version 2, two files of version 1."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    if not words:
        words = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    try:
        quota, period = map(int, words)  # "max" is no number: no limit
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
