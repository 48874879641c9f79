"""Select the frames of a file that the model sees (pure, in exact fractions).

N is the number of frames of the file, f that of a clip, r the rate, n the number of clips.
Sources: facebookresearch/TimeSformer, datasets/decoder.py and ssv2.py; open-mmlab/mmaction2,
`SampleFrames` in test mode; m-bain/frozen-in-time, base/base_dataset.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise

from model.sampling import Sampling

Indices = tuple[int, ...]


def clip_indices(
    sampling: Sampling, count: int, frames: int, clips: int = 1, fps: Fraction | float | None = None
) -> tuple[Indices, ...]:
    """Return the indices of the frames of each clip, in the order of time.

    Args:
        sampling: How the frames are chosen.
        count: Number of frames of the file, N, at least 1.
        frames: Number of frames of a clip, f.
        clips: Number of clips, n; one clip lies where the sampling says, several are spread.
        fps: Frames per second of the file; without it, the file is taken to have the frames per
            second of the sampling.
    """
    scale = Fraction(fps) / Fraction(sampling.fps) if sampling.fps and fps else Fraction(1)
    choose = _RULES[sampling.rule]
    return tuple(choose(sampling, count, frames, (i, clips), scale) for i in range(clips))


def _centres(
    _sampling: Sampling, count: int, frames: int, clip: tuple[int, int], _scale: Fraction
) -> Indices:
    """Frame `floor((k + 1/2) N / f)`; clip i of n takes `(i + 1/2) / n` in place of 1/2."""
    place = Fraction(2 * clip[0] + 1, 2 * clip[1])
    return _line(place * count / frames, Fraction(count, frames), frames)


def _starts(
    _sampling: Sampling, count: int, frames: int, clip: tuple[int, int], _scale: Fraction
) -> Indices:
    """Frame `floor(k N / f)` (Hugging Face); clip i of n adds `i / n` of a segment."""
    return _line(Fraction(clip[0] * count, clip[1] * frames), Fraction(count, frames), frames)


def _middles(
    _sampling: Sampling, count: int, frames: int, clip: tuple[int, int], _scale: Fraction
) -> Indices:
    """The middle of the rounded ends of each of f segments of N - 1 frames (ssv2.py)."""
    segment, (i, n) = (count - 1) / frames, clip
    ends = [round(segment * k) for k in range(frames + 1)]  # in floats, as the original rounds
    return tuple((2 * n * a + (2 * i + 1) * (b - a)) // (2 * n) for a, b in pairwise(ends))


def _medians(
    _sampling: Sampling, count: int, frames: int, clip: tuple[int, int], _scale: Fraction
) -> Indices:
    """The middle, rounded down, of the first and the last frame of each of f segments.

    Segment k has the frames `floor(k N / f)` to `floor((k + 1) N / f) - 1` (base_dataset.py); clip
    i of n takes `(i + 1/2) / n` of the way from its first to its last frame.
    """
    segment, (i, n) = count / frames, clip
    starts = [*(int(segment * k) for k in range(frames)), count]  # in floats, as the original
    spans = ((a, max(b - 1, a)) for a, b in pairwise(starts))
    return tuple((2 * n * a + (2 * i + 1) * (b - a)) // (2 * n) for a, b in spans)


def _window(
    sampling: Sampling, count: int, frames: int, clip: tuple[int, int], scale: Fraction
) -> Indices:
    """F places, evenly from the first to the last of a window of f r frames (decoder.py).

    The window of clip i of n starts at `max(N - window, 0) * i / n`; places are truncated.
    """
    window = sampling.rate * frames * scale
    share = Fraction(*clip) if clip[1] > 1 else _SHARES[sampling.place]
    first, step = max(count - window, Fraction(0)) * share, (window - 1) / max(frames - 1, 1)
    return _inside(sampling, _line(first, step, frames), count)


def _steps(
    sampling: Sampling, count: int, frames: int, clip: tuple[int, int], scale: Fraction
) -> Indices:
    """F frames r apart, from a window of `(f - 1) r + 1` frames (mmaction2).

    Clip i of n starts at `round(max(N - window, 0) * i / (n - 1))`.
    """
    step, (i, n) = sampling.rate * scale, clip
    room = max(count - (int((frames - 1) * step) + 1), 0)
    first = round(Fraction(room * i, n - 1)) if n > 1 else int(room * _SHARES[sampling.place])
    return _inside(sampling, _line(first + Fraction(1, 2), Fraction(step), frames), count)


def _line(first: Fraction, step: Fraction, frames: int) -> Indices:
    """Return `first + k step` for each k, rounded down, but at least 0."""
    below = first.denominator * step.denominator
    start, slope = first.numerator * step.denominator, step.numerator * first.denominator
    return tuple(max(start + k * slope, 0) // below for k in range(frames))


def _inside(sampling: Sampling, places: Indices, count: int) -> Indices:
    if sampling.past_end == "loop":
        return tuple(place % count for place in places)
    return tuple(min(place, count - 1) for place in places)


_SHARES: Mapping[str, Fraction] = {  # of the frames outside of the window, how many lie before it
    "start": Fraction(0),
    "centre": Fraction(1, 2),
    "end": Fraction(1),
}
_RULES: Mapping[str, Callable[[Sampling, int, int, tuple[int, int], Fraction], Indices]] = {
    "centres": _centres,
    "starts": _starts,
    "middles": _middles,
    "medians": _medians,
    "window": _window,
    "steps": _steps,
}
