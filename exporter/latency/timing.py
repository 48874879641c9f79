"""Runners -> latency, compared with the limit of this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch

from exporter.graph.cost import GraphCost, MatmulShape, count_cost, matmul_shapes, why_unknown
from exporter.latency.bench import bench
from exporter.machine.contention import Contention
from exporter.machine.speed import BUDGET_SECONDS, MachineLimit, measure_machine, of_limit
from exporter.results import Latency
from exporter.run.job import Job
from exporter.run.stages import Stage
from exporter.runners.base import Runner
from exporter.runners.eager import EagerRunner
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.runners.open import FOR_PROOF_ONLY
from exporter.runners.openvino import OpenVinoRunner


@dataclass(frozen=True)
class Timed:
    """Latency rows, and what they are compared with: the cost of a run and the machine's limit.

    A module that is not of this package may have no cost that is known, and no matrix products.

    `cores_busy_with_others` says how busy other processes kept the machine; None if not known.
    """

    rows: tuple[Latency, ...]
    cost: GraphCost | None
    limit: MachineLimit | None
    cores_busy_with_others: float | None


def measure_latency(
    job: Job, runners: Sequence[Runner], graph: Path, fp32: Path | None, stage: Stage
) -> Timed:
    """Time the runners, and how fast this machine does the matrix products of the graph.

    Args:
        job: The export.
        runners: The runners; those that nobody deploys are left out.
        graph: The graph that is delivered.
        fp32: The float32 graph to time beside a quantized one.
        stage: Told about the progress.
    """
    with Contention() as contention:
        rows = _time_runners(job, runners, fp32, stage)
        cost, shapes = _count(job, graph, stage)
        limit = None
        if shapes:
            seconds = min(BUDGET_SECONDS, job.spec.bench_seconds)
            try:
                limit = measure_machine(shapes, torch.get_num_threads(), seconds=seconds)
            except MemoryError:  # it copies more than any cache holds, and nothing depends on it
                stage.detail += "; too little memory to measure the limit of this machine"
    compared = tuple(_against_limit(row, cost, limit) for row in rows)
    return Timed(compared, cost, limit, contention.cores)


def _count(
    job: Job, graph: Path, stage: Stage
) -> tuple[GraphCost | None, Counter[MatmulShape] | None]:
    """Count the cost of a run, and its matrix products; None for a module of unknown operators."""
    model, batch = onnx.load(graph), job.spec.run_batch
    if job.inputs.given and (reason := why_unknown(model, batch)):
        stage.detail += f"; the cost of a run is not known: {reason}"
        return None, None
    return count_cost(model, batch), matmul_shapes(model, batch)


def _time_runners(
    job: Job, runners: Sequence[Runner], fp32: Path | None, stage: Stage
) -> list[Latency]:
    def report(done: int, total: int) -> None:
        stage.progress(done / total, f"{done} rounds")

    timed = [runner for runner in runners if runner.name not in FOR_PROOF_ONLY]
    for runner in timed:
        if isinstance(runner, OnnxRuntimeRunner | OpenVinoRunner):
            runner.use_threads(torch.get_num_threads())
    with ExitStack() as others:
        baselines: list[Runner] = [others.enter_context(EagerRunner(job.model, job.inputs.shapes))]
        if fp32 is not None:
            threads = torch.get_num_threads()
            baselines.append(others.enter_context(OnnxRuntimeRunner(fp32, threads=threads)))
        latency = bench(
            [*baselines, *timed],
            job.inputs.batch(job.spec.run_batch),
            budget_seconds=job.spec.bench_seconds,
            on_round=report,
        )
    stage.detail = f"{latency[0].runs} rounds, interleaved"
    stage.peak_memory_mb = max(row.peak_memory_mb for row in latency)
    return latency


def _against_limit(row: Latency, cost: GraphCost | None, limit: MachineLimit | None) -> Latency:
    """Add to a row how much of the limit of this CPU it reached; a GPU has another limit."""
    if row.device != "cpu" or cost is None or limit is None:
        return row
    return replace(row, of_limit=of_limit(cost, limit, row.p50_ms / 1e3))
