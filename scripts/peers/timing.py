"""A pair of sides -> rounds -> figures. Compare both sides with the truth; time them in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sides import (
    RUNTIMES,
    Pair,
    Run,
    UnavailableError,
    find_truth,
    make_clips,
    resolve,
)

from exporter.machine.contention import Contention

WARMUP_RUNS, MIN_ROUNDS = 3, 5
RESAMPLES = 2000


@dataclass(frozen=True)
class Rounds:
    """The measurement of a pair by one process: seconds of both sides, round by round."""

    status: str = "timed"  # or "failed", "missing"
    reason: str = ""
    ours: Sequence[float] = ()
    peer: Sequence[float] = ()
    ours_rel_l2: float | None = None
    peer_rel_l2: float | None = None
    others_busy_cores: float | None = None


@dataclass(frozen=True)
class Figures:
    """The figures of a pair, over all its processes."""

    status: str = "timed"
    reason: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    ours_p50_ms: float | None = None
    peer_p50_ms: float | None = None
    measured_rounds: int = 0
    ours_rel_l2: float | None = None
    peer_rel_l2: float | None = None
    others_busy_cores: float | None = None


def measure(pair: Pair, folder: Path) -> Rounds:
    """Prepare both sides, compute their errors, and time them; run this in a new process."""
    torch.set_num_threads(pair.threads)
    video = make_clips(pair)
    runs, errors = [], []
    for name in (pair.ours, pair.peer):
        try:
            with torch.no_grad():
                side = resolve(name, pair)
                runs.append(RUNTIMES[side.runtime](side, pair, video, folder))
                for _ in range(WARMUP_RUNS):
                    runs[-1]()
                errors.append(relative_error(runs[-1](), find_truth(side, pair, video, folder)))
        except UnavailableError as error:
            return Rounds("missing", f"{name}: {error}")
        except Exception as error:  # a side may raise anything; the row reports it
            said = " ".join(str(error).split())[:300]
            return Rounds("failed", f"{name}: {type(error).__name__}: {said}")
    with torch.no_grad(), Contention() as others:
        ours, peer = time_pair(runs, pair.rounds, pair.seconds)
    ours_off, peer_off = errors
    return Rounds("timed", "", ours, peer, ours_off, peer_off, others.cores)


def summarise(parts: Sequence[Rounds]) -> Figures:
    """Combine the measurements of several processes into the figures of a pair (pure)."""
    for part in parts:
        if part.status != "timed":
            return Figures(part.status, part.reason)
    ratio, low, high = median_interval(*(np.divide(part.peer, part.ours) for part in parts))
    ours, peer = (
        np.concatenate([getattr(part, side) for part in parts]) for side in ("ours", "peer")
    )
    busy = [part.others_busy_cores for part in parts if part.others_busy_cores is not None]
    return Figures(
        ratio=ratio,
        low=low,
        high=high,
        ours_p50_ms=float(np.median(ours) * 1e3),
        peer_p50_ms=float(np.median(peer) * 1e3),
        measured_rounds=len(ours),
        ours_rel_l2=parts[0].ours_rel_l2,
        peer_rel_l2=parts[0].peer_rel_l2,
        others_busy_cores=float(np.mean(busy)) if busy else None,
    )


def relative_error(logits: np.ndarray, truth: np.ndarray) -> float:
    """Compute the relative L2 error over the clips with a known truth."""
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    off = np.linalg.norm(logits[: len(truth)].astype(np.float64) - truth)
    return float(off / np.linalg.norm(truth))


def time_pair(runs: Sequence[Run], rounds: int, seconds: float) -> list[list[float]]:
    """Time both sides once in each round; the side that runs first alternates.

    Each timed run follows a run of the same side: after a run of the other side, threads still spin
    and caches hold other values.
    """
    taken: list[list[float]] = [[], []]
    started = time.perf_counter()
    for done in range(max(rounds, MIN_ROUNDS)):
        if done >= MIN_ROUNDS and time.perf_counter() - started > seconds:
            break
        for index in (0, 1) if done % 2 else (1, 0):
            runs[index]()
            before = time.perf_counter()
            runs[index]()
            taken[index].append(time.perf_counter() - before)
    return taken


def median_interval(*samples: np.ndarray) -> tuple[float, float, float]:
    """Return the median of all samples and its 95 % bootstrap interval (pure).

    The bootstrap draws samples first, then values within each drawn sample. So the interval
    includes the variation between processes, for example from the placement of their memory.
    """
    rng = np.random.default_rng(0)

    def resample() -> float:
        drawn = [samples[index] for index in rng.integers(len(samples), size=len(samples))]
        return float(np.median(np.concatenate([rng.choice(one, len(one)) for one in drawn])))

    low, high = np.percentile([resample() for _ in range(RESAMPLES)], [2.5, 97.5])
    return float(np.median(np.concatenate(samples))), float(low), float(high)
