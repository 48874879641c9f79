"""PyTorch beside an export: the published model in eager mode, our model, and torch.compile.

The runtime "published" computes the function of the published FastTimeSformer (its upstream
semantics) with this project's code. It does not run the published package.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from cells import Cell, Sizes
from torch import Tensor, nn

from exporter.precision import in_precision
from model import FastTimeSformer
from model.config import MechanismName, Semantics

WARMUP_RUNS = 3
LEAST_RUNS, MOST_RUNS = 5, 100
Run = Callable[[], Tensor]


class Subject:
    """The model and the clips of one cell at one batch, on a device."""

    def __init__(self, cell: Cell, sizes: Sizes, batch: int, device: torch.device) -> None:
        self.cell, self.sizes, self.device = cell, sizes, device
        side = cell.resolution
        generator = torch.Generator().manual_seed(0)
        shape = (batch, sizes.frames, 3, side, side)
        self.video = torch.randn(shape, generator=generator).to(device)

    def model(self, semantics: Semantics) -> FastTimeSformer:
        """Make the float32 model on the CPU; both semantics have the same weights."""
        sizes, side = self.sizes, self.cell.resolution
        torch.manual_seed(0)
        return FastTimeSformer(
            sizes.frames,
            3,
            side,
            side,
            num_classes=2,
            dim=sizes.dim,
            depth=sizes.depth,
            dim_head=sizes.dim_head,
            attn_mechanism=cast("MechanismName", self.cell.mechanism),
            semantics=semantics,
        ).eval()

    def typed_model(self, semantics: Semantics) -> nn.Module:
        """Make the model in the precision of the cell, on the device."""
        return in_precision(self.model(semantics), self.cell.precision).to(self.device)

    def truth(self, semantics: Semantics) -> Tensor:
        """Compute the float64 logits clip by clip; a whole batch may not fit the memory."""
        model = self.model(semantics).double().to(self.device)
        return torch.cat([model(clip[None].double()) for clip in self.video])


def make_eager(subject: Subject, semantics: Semantics) -> Run:
    """Make a run of PyTorch in eager mode."""
    model = subject.typed_model(semantics)
    return lambda: model(subject.video)


def make_compiled(subject: Subject, semantics: Semantics, *, mode: str | None = None) -> Run:
    """Make a run of torch.compile; `mode="reduce-overhead"` captures CUDA graphs."""
    # "eager" generates no code, which a dry run on a CPU can do without.
    backend = "inductor" if subject.device.type == "cuda" else "eager"
    model = torch.compile(subject.typed_model(semantics), backend=backend, mode=mode, dynamic=False)

    def run() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return model(subject.video)

    return run


# Name -> how the run is made, its semantics, whether it needs a GPU.
PEERS: dict[str, tuple[Callable[[Subject, Semantics], Run], Semantics, bool]] = {
    "published": (make_eager, "upstream", False),
    "eager": (make_eager, "paper", False),
    "torch.compile": (make_compiled, "paper", False),
    "torch.compile, CUDA graph": (partial(make_compiled, mode="reduce-overhead"), "paper", True),
}


def time_peers(
    cell: Cell, sizes: Sizes, batch: int, seconds: float
) -> tuple[Any, str, dict[str, Any]]:
    """Time the peers one after another; give the result of a step."""
    # Not torch's float32 products, which it may compute in TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.reset()  # otherwise its recompilation limit counts over all cells
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    missed: list[dict[str, Any]] = []
    with torch.no_grad():
        subject = Subject(cell, sizes, batch, device)
        for name, (make, semantics, needs_gpu) in PEERS.items():
            row = {"runtime": name, "device": str(device), "batch": batch}
            try:
                if needs_gpu and device.type == "cpu":
                    missed.append({**row, "reason": "needs a CUDA device"})
                    continue
                rows.append(row | _time(subject, make(subject, semantics), semantics, seconds))
            except Exception as error:  # a compiler may raise anything; the row reports it
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                missed.append({**row, "reason": reason})
    del subject
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the next step is not torch's
    return "done", "", {"latency": rows, "not_timed": missed}


def _time(subject: Subject, run: Run, semantics: Semantics, seconds: float) -> dict[str, Any]:
    clock = time_on_cuda if subject.device.type == "cuda" else time_on_cpu
    for _ in range(WARMUP_RUNS):
        clock(run)
    truth, logits = subject.truth(semantics), run().double()
    until, taken = time.monotonic() + seconds, []
    while len(taken) < LEAST_RUNS or (len(taken) < MOST_RUNS and time.monotonic() < until):
        taken.append(clock(run))
    p50, p90, p99 = (float(ms) for ms in np.percentile(np.asarray(taken) * 1e3, [50, 90, 99]))
    error = float((logits - truth).norm() / truth.norm())
    return {
        "precision": subject.cell.precision,
        "timing": "device only",
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "clips_per_s": len(subject.video) * 1e3 / p50,
        "runs": len(taken),
        "rel_l2": error if np.isfinite(error) else None,
    }


def time_on_cpu(run: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one run."""
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def time_on_cuda(run: Callable[[], object]) -> float:
    """Return the seconds between two events around one run; the stream must be idle."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
