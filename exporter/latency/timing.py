"""Runners -> latency, beside what this machine could reach at most."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import onnx
import torch

from exporter.graph.cost import GraphCost, count_cost, matmul_shapes
from exporter.latency.bench import bench
from exporter.machine.speed import BUDGET_SECONDS, MachineLimit, measure_machine, of_limit
from exporter.results import Latency
from exporter.run import Job, Stage
from exporter.runners.base import Runner
from exporter.runners.eager import EagerRunner
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.runners.open import FOR_PROOF_ONLY
from exporter.spec import ExportSpec


def time_runners(
    job: Job, candidates: list[Runner], fp32: Path | None, stage: Stage
) -> list[Latency]:
    """Time what a user would run: not the evaluator, nor what only stands for the engine."""

    def report(done: int, total: int) -> None:
        stage.progress(done / total, f"{done} rounds")

    timed = [runner for runner in candidates if runner.name not in FOR_PROOF_ONLY]
    for runner in timed:
        if isinstance(runner, OnnxRuntimeRunner):
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


def measure_limit(spec: ExportSpec, graph: Path) -> tuple[GraphCost, MachineLimit]:
    """What a run of the graph costs, and how fast this machine does its matrix products."""
    model = onnx.load(graph)
    shapes = matmul_shapes(model, spec.run_batch)
    seconds = min(BUDGET_SECONDS, spec.bench_seconds)
    limit = measure_machine(shapes, torch.get_num_threads(), seconds=seconds)
    return count_cost(model, spec.run_batch), limit


def against_limit(row: Latency, cost: GraphCost, limit: MachineLimit) -> Latency:
    """The row with how much of the limit of this CPU it reached."""
    if row.device != "cpu":
        return row
    return replace(row, of_limit=of_limit(cost, limit, row.p50_ms / 1e3))
