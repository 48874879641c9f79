"""Clips -> rows of numbers: all outputs of a run of one clip, joined, so that one run judges all.

An output with more than `MOST_VALUES` numbers is folded: with random signs s of a fixed seed,

    row_j = sum_k s_jk y_jk     over the values y_jk that fall on place j

(count sketch, Charikar et al. 2002). The fold is linear and keeps distances: the expected square of
the norm is that of y, and with m places it varies by about sqrt(2 / m), here by less than 1 %. So
every value counts, and NaN and infinity stay, and no file holds all hidden states of all clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.inputs.clips import TELLING
from exporter.runners.base import Arrays, Runner, check_outputs, run_each
from model.outputs import LOGITS

MOST_VALUES = 2**15
Sizes = tuple[tuple[str, int], ...]  # name of an output, and its values in a row


def run_clips(
    runner: Runner,
    clips: Arrays,
    batch: int,
    outputs: Sequence[str] = (LOGITS,),
) -> np.ndarray:
    """Compute rows `(n, values)` of n clips, `video` `(n, f, c, h, w)`, in batches of `batch`.

    Clips from the start fill up the last batch.
    """
    return run_batches(runner, clips, in_batches(range(count_clips(clips)), batch), outputs)[0]


def run_batches(
    runner: Runner,
    clips: Arrays,
    batches: Iterable[Sequence[int]],
    outputs: Sequence[str] = (LOGITS,),
) -> list[np.ndarray]:
    """Run batches of clips, which together hold every clip.

    Returns:
        Rows of all clips `(n, values)`, as often as a clip was in a batch. A clip that was in fewer
        batches than another has the same row in several of them.

    Raises:
        RuntimeFailure: if the runtime fails, or does not give one of the outputs of every clip.
    """
    rows: dict[int, list[np.ndarray]] = {}
    chosen = [list(places) for places in batches]
    taken = ({name: array[places] for name, array in clips.items()} for places in chosen)
    for places, made in zip(chosen, run_each(runner, taken), strict=True):
        check_outputs(runner, made, outputs)
        for name in outputs:
            if len(made[name]) != len(places):
                what = f"{runner.name} gives {name} of another number of clips"
                raise RuntimeFailure(what, got=len(made[name]), expected=len(places))
        for clip, row in zip(places, join_outputs(made, outputs), strict=True):
            rows.setdefault(clip, []).append(row)
    times = max(map(len, rows.values()))
    return [np.stack([rows[c][i % len(rows[c])] for c in sorted(rows)]) for i in range(times)]


def around(order: Sequence[int], start: int, size: int) -> list[int]:
    """Give `size` clips from one place of the order on; the first follows the last."""
    return [order[(start + i) % len(order)] for i in range(size)]


def in_batches(order: Sequence[int], size: int) -> Iterator[list[int]]:
    """Give the clips in batches of one size; clips from the start fill up the last one."""
    return (around(order, start, size) for start in range(0, len(order), size))


def in_growing_batches(count: int, sizes: Sequence[int]) -> Iterator[list[int]]:
    """Give batches of n clips: one of each size, then more of the last until each clip was in one.

    Each batch starts with the clip after the last of the batch before.
    """
    more = max(0, math.ceil((count - sum(sizes)) / sizes[-1]))
    start = 0
    for size in (*sizes, *[sizes[-1]] * more):
        yield around(range(count), start, size)
        start += size


def choose_telling(names: Sequence[str], count: int) -> tuple[int, ...]:
    """Choose `count` inputs by their names, those that differ most first; return their places."""
    first = [names.index(name) for name in TELLING if name in names]
    rest = [place for place in range(len(names)) if place not in first]
    return tuple(sorted([*first, *rest][:count]))


def run_sized(runner: Runner, clips: Arrays, outputs: Sequence[str]) -> tuple[np.ndarray, Sizes]:
    """Compute rows one clip at a time, and say how many values of a row each output has."""
    rows = run_clips(runner, clips, 1, outputs=outputs)
    if len(outputs) == 1:
        return rows, ((outputs[0], rows.shape[1]),)
    made = runner.run({name: array[:1] for name, array in clips.items()})
    return rows, tuple((name, fold(made[name]).shape[1]) for name in outputs)


def count_clips(clips: Arrays) -> int:
    """Count the clips, or the samples of other inputs."""
    return len(next(iter(clips.values())))


def columns(sizes: Sizes) -> dict[str, slice]:
    """Say in which columns of the rows each output is."""
    found, start = {}, 0
    for name, size in sizes:
        found[name] = slice(start, start + size)
        start += size
    return found


def join_outputs(outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Join the named outputs, each `(b, ...)`, to rows `(b, values)`."""
    parts = [fold(outputs[name]) for name in names]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def fold(output: np.ndarray) -> np.ndarray:
    """Lay an output `(b, ...)` out as rows, folded to at most `MOST_VALUES` values."""
    rows = output.reshape(len(output), -1)
    if rows.shape[1] <= MOST_VALUES:
        return rows
    sums = np.zeros((len(rows), MOST_VALUES))
    for place, signs in enumerate(_signs(-(-rows.shape[1] // MOST_VALUES))):
        piece = rows[:, place * MOST_VALUES : (place + 1) * MOST_VALUES]
        with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN
            sums[:, : piece.shape[1]] += piece * signs[: piece.shape[1]]
    return sums.astype(rows.dtype)


@lru_cache(maxsize=4)
def _signs(pieces: int) -> np.ndarray:
    drawn = np.random.Generator(np.random.PCG64(0)).random((pieces, MOST_VALUES), np.float32)
    return np.where(drawn < 0.5, np.int8(-1), np.int8(1))
