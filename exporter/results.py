"""What the stages give: plain dataclasses, rendered elsewhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["pass", "fail", "ill-conditioned", "not-run"]


@dataclass(frozen=True)
class StageStatus:
    """One stage of the line: what came of it, how long it took (seconds), and what to know.

    A stage that fails ends the export, so there is no status for that. `peak_memory_mb` is the peak
    resident memory of the process (of the build's own process for the engine), in MiB.
    """

    name: str
    status: Literal["done", "skipped"]
    seconds: float
    detail: str = ""
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class InputParity:
    """One input clip: errors of one runtime against the float64 truth.

    `rel_l2` is |y - t| / |t| over the logits, `floor_rel_l2` the same for eager PyTorch in the
    same precision, `margin` the distance of the two largest logits of t over |t|.
    """

    name: str
    rel_l2: float
    floor_rel_l2: float
    max_abs: float
    cosine: float
    top1_equal: bool
    top5_overlap: float
    margin: float


@dataclass(frozen=True)
class Parity:
    """One runtime judged against the float64 truth; the figures are the worst over the inputs."""

    runtime: str
    device: str
    precision: str
    verdict: Verdict
    rel_l2: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    top5_agreement: float | None = None
    floor_rel_l2: float | None = None
    tolerance: float | None = None
    batch_invariance_rel_l2: float | None = None
    inputs: int = 0
    reason: str = ""
    per_input: tuple[InputParity, ...] = ()


@dataclass(frozen=True)
class Latency:
    """Wall-clock times of one runtime, milliseconds per batch, host to host."""

    runtime: str
    device: str
    precision: str
    batch: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    clips_per_s: float
    runs: int
    peak_memory_mb: float
    warmup_runs: int
    threads: int
    transfers_included: bool
    ratio_to_eager: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything that `report.json` holds."""

    spec: dict[str, Any]
    environment: dict[str, Any]
    stages: tuple[StageStatus, ...]
    parity: tuple[Parity, ...]
    latency: tuple[Latency, ...]
    engine: dict[str, Any] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON-ready values."""
        return asdict(self)
