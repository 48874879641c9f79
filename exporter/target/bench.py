"""An exported directory -> latency of every runtime of this machine. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.errors import RuntimeFailure, UsageError
from exporter.files.manifest import read_manifest
from exporter.files.reference import REFERENCE, read_reference
from exporter.inputs.clips import gather_inputs
from exporter.inputs.kept import regain_given
from exporter.latency.bench import bench as time_interleaved
from exporter.latency.bench import summarize
from exporter.machine import environment
from exporter.machine.contention import Contention
from exporter.machine.memory import peak_memory_mb
from exporter.predict import Card
from exporter.results import Latency
from exporter.run.stages import OnProgress, no_progress
from exporter.runners.base import Arrays, Runner
from exporter.runners.device import OnDevice
from exporter.runners.tensorrt import TensorRtRunner
from exporter.spec import ExportSpec
from exporter.spec.checks import check_seconds
from exporter.target.runtimes import open_runtimes

MOST_RUNS = 1000
DEVICE_RUNS = 100


@dataclass(frozen=True)
class NotTimed:
    """A runtime that was not timed at a batch, and why."""

    runtime: str
    device: str
    precision: str
    batch: int
    reason: str


@dataclass(frozen=True)
class Benched:
    """What was timed on this machine, and what was not."""

    environment: dict[str, Any]
    latency: tuple[Latency, ...]
    not_timed: tuple[NotTimed, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert it to values that JSON can hold."""
        return asdict(self)


def bench(
    directory: str | Path,
    *,
    batches: Sequence[int] = (),
    seconds: float = ExportSpec.bench_seconds,
    on_progress: OnProgress = no_progress,
) -> Benched:
    """Time every runtime that can run a file of this directory here, interleaved.

    Args:
        directory: A directory that `export` made.
        batches: Clips of a run (default: the batch of the export).
        seconds: Time for each batch; every runtime runs at least ten times.
        on_progress: Called while it runs.

    Raises:
        NoExportError: if the directory is not an export.
        ManifestError: if a file was changed.
        UsageError: if no runtime takes a batch that was asked for, or `seconds` is not 0 to a day.
        RuntimeFailure: if nothing can be run here.
    """
    check_seconds("--seconds", seconds)
    directory = Path(directory)
    manifest = read_manifest(directory)
    card = Card.of(directory, manifest)
    latency: list[Latency] = []
    missed: list[NotTimed] = []
    with ExitStack() as resources, Contention() as contention:
        opened = open_runtimes(directory, manifest, resources, for_proof=False)
        if not opened.runners:
            reasons = "; ".join(f"{row.runtime}: {row.reason}" for row in opened.absences)
            raise RuntimeFailure(f"nothing of {directory} can be run here: {reasons}")
        if card.takes_clips:
            masked = "mask" in opened.runners[0].input_shapes
            inputs = gather_inputs((), card.config, card.preprocessing, mask=masked)
        else:
            inputs = regain_given(read_reference(directory / REFERENCE)).inputs
        sizes = batches or (manifest["spec"]["batch"],)
        for size in sizes:  # before anything is timed
            taking, refusing = _split(opened.runners, card, size)
            if not taking:
                raise UsageError(f"--batch {size} is not taken: {refusing[0].reason}")
        for size in sizes:
            missed += [
                NotTimed(row.runtime, row.device, row.precision, size, row.reason)
                for row in opened.absences
            ]
            taking, refusing = _split(opened.runners, card, size)
            missed += refusing
            timed, failed = _time(taking, inputs.batch(size), seconds, size, on_progress)
            latency += timed
            missed += failed
    facts = environment.describe() | {"cores_busy_with_others": contention.cores}
    return Benched(facts, tuple(latency), tuple(missed))


def _split(runners: Sequence[Runner], card: Card, size: int) -> tuple[list[Runner], list[NotTimed]]:
    """Separate the runners that take a batch from those that do not."""
    taking, refusing = [], []
    for runner in runners:
        fixed, profile = next(iter(runner.input_shapes.values()))[0], card.dynamic_batch
        least = profile.min if profile and isinstance(runner, TensorRtRunner) else 1
        if fixed and fixed != size:
            reason = f"its batch is {fixed}; export with --dynamic-batch MIN:OPT:MAX for others"
        elif profile and not fixed and not least <= size <= profile.max:
            reason = f"its batch is {least} to {profile.max}"
        else:
            taking.append(runner)
            continue
        refusing.append(NotTimed(runner.name, runner.device, runner.precision, size, reason))
    return taking, refusing


def _time(
    runners: Sequence[Runner], batch: Arrays, seconds: float, size: int, on_progress: OnProgress
) -> tuple[list[Latency], list[NotTimed]]:
    def report(done: int, total: int) -> None:
        on_progress("bench", done / total, f"batch {size}, {done} rounds")

    missed: list[NotTimed] = []
    rows = time_interleaved(
        runners, batch, budget_seconds=seconds, most_runs=MOST_RUNS, on_round=report
    )
    for runner in runners:
        if not isinstance(runner, OnDevice):
            continue
        for graph in (False, True):
            timing = "device only, CUDA graph" if graph else "device only"
            on_progress("bench", None, f"batch {size}, {runner.name} {timing}")
            try:
                taken = runner.device_seconds(batch, DEVICE_RUNS, graph=graph)
            except RuntimeFailure as error:
                where = (runner.name, runner.device, runner.precision, size)
                missed.append(NotTimed(*where, f"{timing}: {error}"))
            else:
                rows.append(summarize(runner, size, taken, peak_memory_mb(), timing=timing))
    return rows, missed
