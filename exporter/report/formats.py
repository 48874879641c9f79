"""Numbers and values -> text, the same in every form of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping


def sci(value: float | None) -> str:
    """Write an error with two significant digits; rounding makes further ones meaningless."""
    if value is None or value == 0:
        return "-" if value is None else "0"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    return f"{value:.1e}" if value < 0.01 else f"{value:#.2g}".rstrip(".")


def ms(value: float | None) -> str:
    """Write a measured quantity with three significant digits."""
    if value is None or not math.isfinite(value):
        return "-"
    rounded = float(f"{value:.2e}")
    decimals = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:,.{max(decimals, 0)}f}"


def seconds(value: float | None) -> str:
    """Write the time of a stage, in hundredths below a second."""
    return f"{value:.2f}" if value is not None and value < 1 else ms(value)


def mb(count: float | None) -> str:
    """Write bytes as megabytes (10^6)."""
    return "-" if count is None else f"{ms(count / 1e6)} MB"


def gflop(count: float | None) -> str:
    """Write floating-point operations in billions (10^9)."""
    return "-" if count is None else f"{ms(count / 1e9)} GFLOP"


def ratio(value: float | None) -> str:
    """Write a speed-up over eager."""
    return "-" if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    """Write a share as a percentage."""
    return "-" if value is None else f"{100 * value:.3g} %"


def accuracy(value: float | None, *, share: bool) -> str:
    """Write an accuracy: as a percentage if it is a share, else as a number."""
    return percent(value) if share or value is None else human(value)


def cosine(value: float | None) -> str:
    """Write a cosine with seven decimals: it differs from 1 in the last ones."""
    return "-" if value is None else f"{value:.7f}"


def size(height: object, width: object) -> str:
    """Write a resolution: one number where it is square."""
    return str(height) if height == width else f"{height} x {width}"


def label(key: object) -> str:
    """Write the name of a field for people."""
    return str(key).replace("_", " ")


def human(value: object) -> str:
    """Write any value of a spec, an environment or a graph for people."""
    if value is None or value in ((), [], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value or 0.0:,.4g}" if math.isfinite(value) else sci(value)  # -0.0 is 0
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {human(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(human, value))
    return str(value)
