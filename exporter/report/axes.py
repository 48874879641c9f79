"""Limits and round values of a plot's axes (pure)."""

from __future__ import annotations

import math
from collections.abc import Iterable


def log_limits(values: Iterable[float | None], room: float = 1.6) -> tuple[float, float]:
    """Enclose the positive values, if any, with some times of them as room at either end."""
    found = [value for value in values if value and 0 < value < math.inf]
    return (min(found) / room, max(found) * room) if found else (1e-8, 1.0)


def log_values(low: float, high: float, most: int) -> list[float]:
    """Give at most so many round values between two: powers of ten, or 1, 2 and 5 times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [power for power in range(first, last + 1) if low <= 10.0**power <= high]
    if len(powers) >= 3:
        return [10.0**power for power in powers[:: math.ceil(len(powers) / most)]]
    for factors in ((1, 2, 5), (1, 3), (1,)):
        steps = (factor * 10.0**power for power in range(first, last + 1) for factor in factors)
        ticks = [step for step in steps if low <= step <= high]
        if 2 <= len(ticks) <= most:
            return ticks
    return round_values(low, high, most)


def round_values(low: float, high: float, most: int) -> list[float]:
    """Give at most so many round values between two, an equal step apart."""
    if not low < high:
        return [low]
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (unit * factor for factor in (1, 2, 5, 10, 20, 50)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if first <= last < first + most:
            return [float(f"{index * step:.12g}") for index in range(first, last + 1)]
    return [low]
