"""Checks of the values of a spec that belong together."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral, Real

from exporter.errors import UsageError
from exporter.spec.choices import BF16_OPSET, OPSETS
from exporter.spec.option import MOST_CLIPS, BatchProfile

MOST_SECONDS = 86_400.0  # of a measurement: a day
_MOST = 512  # threads or processes: runtimes need a minute to start a thousand, and crash at more


def check_batch(batch: int | None, profile: BatchProfile | None, run_batch: int) -> None:
    """Raise `UsageError` unless the batch is one that the graph takes."""
    check_count("--batch", batch, most=MOST_CLIPS)
    if profile and not profile.min <= run_batch <= profile.max:
        accepted = f"{profile.min} to {profile.max}"
        raise UsageError("--batch beside --dynamic-batch", got=batch, expected=accepted)


def check_count(
    option: str, given: int | None, *, least: int = 1, most: int = _MOST, needed: bool = False
) -> None:
    """Raise `UsageError` unless a number of threads, processes or clips is whole and in limits.

    None stands for a default; where there is none, the number is `needed`.
    """
    if given is None and not needed:
        return
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if given is None or not whole or not least <= given <= most:
        raise UsageError(option, got=repr(given), expected=f"{least} to {most:,}")


def check_seconds(option: str, given: float) -> None:
    """Raise `UsageError` unless a measurement can take so long."""
    number = isinstance(given, Real) and not isinstance(given, bool)
    if not number or not 0 <= given <= MOST_SECONDS:  # refuses NaN too
        raise UsageError(option, got=repr(given), expected=f"0 to {MOST_SECONDS:,.0f} seconds")


def check_opset(opset: int | None, precision: str) -> None:
    """Raise `UsageError` unless a graph of the precision can have the opset."""
    least = BF16_OPSET if precision == "bf16" else OPSETS.start
    if opset is not None and not least <= opset < OPSETS.stop:
        raise UsageError("--opset", got=opset, expected=f"{least} to {OPSETS.stop - 1}")


def check_engine(engine: str, wanted: str, targets: Collection[str]) -> None:
    """Raise `UsageError` unless the engine is wanted at all, and takes the targets."""
    if engine not in ("auto", wanted):
        raise UsageError(f"--engine {engine} needs tensorrt in --for")
    if targets and wanted in ("none", "tensorrt"):
        what = f"--target does not go with --engine {wanted}"
        raise UsageError(what, remedy="omit --target, or choose --engine rtx")
    if "sm75" in targets:
        why = "TensorRT-RTX has no fp32 matrix product for Turing, and every graph has one"
        raise UsageError(f"--target sm75 cannot be built: {why}", remedy="omit sm75")
