"""The results of the stages: plain dataclasses. `exporter.report` renders them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

HOST_TO_HOST = "host to host"  # what a latency is of: from host memory to host memory
ROOM = 0.5
Verdict = Literal["pass", "fail", "ill-conditioned", "not-run"]


@dataclass(frozen=True)
class StageStatus:
    """One stage of an export: its status, its time in seconds, and a remark.

    A stage that the export can do without may fail; its detail says why. Any other failure ends the
    export, so it has no status. `peak_memory_mb` is the peak resident memory of the process in MiB;
    for the engine, of the process that builds it.
    """

    name: str
    status: Literal["done", "skipped", "failed"]
    seconds: float
    detail: str = ""
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class InputParity:
    """One input clip: errors of one runtime against the float64 truth.

    `rel_l2` is |y - t| / |t| over the logits. `floor_rel_l2` is the same error of eager PyTorch in
    the same precision. `margin` is the difference of the two largest logits of t, over |t|. In all
    three, |t| is at least half its median over the inputs.

    Where labels are independent, `signs_equal` is the share of logits with the sign of t, and
    `margin` is the largest |t_j| / |t| of a logit with another sign.
    """

    name: str
    rel_l2: float
    floor_rel_l2: float
    max_abs: float
    cosine: float
    top1_equal: bool | None = None
    top5_overlap: float | None = None
    margin: float = 0.0
    signs_equal: float | None = None

    @property
    def answer_differs(self) -> bool:
        """Whether the runtime gives another class, or another label, than the truth."""
        return self.top1_equal is False or self.signs_equal not in (None, 1.0)


@dataclass(frozen=True)
class Parity:
    """One output of one runtime, judged against the float64 truth: the worst over the inputs.

    Only logits have a top-1 and a top-5 class. `judged` is what the row is about. For `structure`
    the graph is computed in float64, and the truth has the weights of the graph, so that nothing
    rounds. For `rounding` a runtime computes the graph as it is.
    """

    runtime: str
    device: str
    precision: str
    verdict: Verdict
    rel_l2: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    top5_agreement: float | None = None
    sign_agreement: float | None = None
    floor_rel_l2: float | None = None
    tolerance: float | None = None
    batch_invariance_rel_l2: float | None = None
    median_rel_l2: float | None = None
    bias: float | None = None
    inputs: int = 0
    reason: str = ""
    per_input: tuple[InputParity, ...] = ()
    output: str = "logits"
    judged: str = "rounding"


@dataclass(frozen=True)
class Rung:
    """One module: errors of its output in a graph against the float64 truth, worst of the inputs.

    `floor_rel_l2` is the error of eager PyTorch in the precision of the graph.
    """

    path: str
    rel_l2: float
    floor_rel_l2: float
    cosine: float
    max_abs: float
    finite: bool


@dataclass(frozen=True)
class Ladder:
    """The modules in the order of computation.

    `first_divergence` and `first_not_finite` are paths of modules, or empty.
    """

    runtime: str
    device: str
    precision: str
    rungs: tuple[Rung, ...]
    first_divergence: str
    first_not_finite: str


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one runtime on labelled clips, with its 95 % interval if it is a share of clips.

    `measure` names it: top-1 where one class is right, mAP where labels are independent, R2 of
    values. `agreement` is the share of answers that are those of eager PyTorch in float32. `bad`
    clips could not be read, or have NaN or infinity for an answer where no class is asked for; they
    do not count.
    """

    runtime: str
    device: str
    precision: str
    dataset: str
    clips: int
    accuracy: float
    low: float | None
    high: float | None
    agreement: float | None
    measure: str = "top-1"
    bad: int = 0

    @property
    def is_share(self) -> bool:
        """Whether it is from 0 to 1; R2 is at most 1, and below 0 where the mean is better."""
        return self.measure != "R2"


@dataclass(frozen=True)
class Latency:
    """Wall-clock times of one runtime, milliseconds per batch.

    `timing` says what was timed: `host to host`, or on a GPU also `device only`, without the copies
    of inputs and outputs, and `device only, CUDA graph`.
    `of_limit` is the time of the graph's matrix products alone, in float32 on this CPU, over
    `p50_ms`. The best value is 1.0; a runtime that computes in a faster type may exceed it.
    `samples_ms` are the single runs in their order. `p50_low_ms` and `p50_high_ms` bound the median
    with 95 % confidence, if the runs are independent.
    """

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
    ratio_to_fp32: float | None = None  # to ONNX Runtime on the float32 graph, if it was timed
    of_limit: float | None = None  # None on a GPU, whose limit is not measured
    timing: str = HOST_TO_HOST
    p50_low_ms: float | None = None
    p50_high_ms: float | None = None
    samples_ms: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Sheet:
    """Frames of a clip as the model saw them: uint8 pixels `(h, w, 3)`, each with its caption.

    `frames` is the number of frames of the clip; a sheet may show fewer.
    """

    clip: str
    frames: int
    pixels: tuple[np.ndarray, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The content of `report.json`."""

    spec: dict[str, Any]
    environment: dict[str, Any]
    stages: tuple[StageStatus, ...]
    parity: tuple[Parity, ...]
    latency: tuple[Latency, ...]
    engine: dict[str, Any] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)
    accuracy: tuple[Accuracy, ...] = ()
    ladder: Ladder | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert the report to values that JSON can hold."""
        return asdict(self)


def worst_verdict(verdicts: Iterable[str]) -> Verdict:
    """The worst of some verdicts; `not-run` of none."""
    found = {*verdicts, "not-run"}
    worst_first: tuple[Verdict, ...] = ("fail", "ill-conditioned", "pass", "not-run")
    return next(verdict for verdict in worst_first if verdict in found)


def overall_verdict(parity: Iterable[Parity]) -> Verdict:
    """The worst verdict among the rows that were run; `not-run` if no runtime was.

    A pass needs a runtime: the structure of a graph alone says nothing about what runs it.
    """
    rows = [row for row in parity if not is_eager_pass(row)]
    return worst_verdict(
        row.verdict for row in rows if row.judged == "rounding" or row.verdict != "pass"
    )


def passed_with_room(parity: Iterable[Parity]) -> bool:
    """Whether every row that was run passed, with an error of at most `ROOM` of its tolerance."""
    run = [row for row in parity if row.verdict != "not-run"]
    return all(
        row.verdict == "pass" and (row.rel_l2 or 0.0) <= ROOM * (row.tolerance or 0.0)
        for row in run
    )


def is_eager_pass(row: Parity) -> bool:
    """Whether a row compares eager PyTorch with itself, which says nothing about an export."""
    return row.runtime == "eager" and row.verdict == "pass"


@dataclass(frozen=True)
class Recipe:
    """The content of `export --recipe`: a precision, and the modules that stay in float32.

    `error` is the relative L2 of the logits with the recipe, `error_without` the one with no module
    kept. `alone` has the share of each module, largest first.
    """

    precision: str
    keep_fp32: tuple[str, ...]
    budget: float
    error: float
    error_without: float
    evaluations: int
    alone: Mapping[str, float]
