"""Checks of the values of a spec that belong together."""

from __future__ import annotations

from collections.abc import Collection

from exporter.errors import UsageError
from exporter.spec.choices import BF16_OPSET, OPSETS
from exporter.spec.option import MOST_CLIPS, BatchProfile

_MOST = 512  # threads or processes: runtimes need a minute to start a thousand, and crash at more


def check_batch(batch: int | None, profile: BatchProfile | None, run_batch: int) -> None:
    """Raise `UsageError` unless the batch is one that the graph takes."""
    if batch is not None and not 1 <= batch <= MOST_CLIPS:
        raise UsageError("--batch", got=batch, expected=f"1 to {MOST_CLIPS:,}")
    if profile and not profile.min <= run_batch <= profile.max:
        accepted = f"{profile.min} to {profile.max}"
        raise UsageError("--batch beside --dynamic-batch", got=batch, expected=accepted)


def check_count(option: str, given: int | None) -> None:
    """Raise `UsageError` unless so many threads or processes can be started."""
    if given is not None and not 1 <= given <= _MOST:
        raise UsageError(option, got=given, expected=f"1 to {_MOST}")


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
