"""A pair of sides -> figures: both judged against the truth, and timed in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peers_sides import RUNTIMES, Pair, Run, UnavailableError, find_truth, resolve

from exporter.contention import Contention

WARMUP_RUNS, MIN_ROUNDS = 3, 5
SETTLE_SECONDS = 0.005  # the threads of one runtime spin on for a while, and would slow the other
RESAMPLES = 2000


@dataclass(frozen=True)
class Figures:
    """What came of a pair."""

    status: str = "timed"  # or "failed", "missing"
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


def measure(pair: Pair, folder: Path) -> Figures:
    """Make both sides, judge what they compute, and time them; for a process of its own."""
    torch.set_num_threads(pair.threads)
    shape = (pair.batch, pair.frames, 3, pair.resolution, pair.resolution)
    video = np.random.default_rng(0).standard_normal(shape, np.float32)
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
            return Figures("missing", f"{name}: {error}")
        except Exception as error:  # whatever a side raises is what there is to say of it
            said = " ".join(str(error).split())[:300]
            return Figures("failed", f"{name}: {type(error).__name__}: {said}")
    with torch.no_grad(), Contention() as others:
        ours, peer = time_pair(runs, pair.rounds, pair.seconds)
    ratio, low, high = median_interval(peer / ours)
    return Figures(
        ratio=ratio,
        low=low,
        high=high,
        ours_p50_ms=float(np.median(ours) * 1e3),
        peer_p50_ms=float(np.median(peer) * 1e3),
        measured_rounds=len(ours),
        ours_rel_l2=errors[0],
        peer_rel_l2=errors[1],
        others_busy_cores=others.cores,
    )


def relative_error(logits: np.ndarray, truth: np.ndarray) -> float:
    """Relative L2 of the clips whose truth is known."""
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    off = np.linalg.norm(logits[: len(truth)].astype(np.float64) - truth)
    return float(off / np.linalg.norm(truth))


def time_pair(runs: Sequence[Run], rounds: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of both sides, once each a round, the first to go changing from round to round."""
    taken: list[list[float]] = [[], []]
    started = time.perf_counter()
    for done in range(max(rounds, MIN_ROUNDS)):
        if done >= MIN_ROUNDS and time.perf_counter() - started > seconds:
            break
        for index in (0, 1) if done % 2 else (1, 0):
            time.sleep(SETTLE_SECONDS)
            before = time.perf_counter()
            runs[index]()
            taken[index].append(time.perf_counter() - before)
    ours, peer = map(np.asarray, taken)
    return ours, peer


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval (pure)."""
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)
