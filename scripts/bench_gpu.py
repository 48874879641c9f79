"""Time every runtime of a GPU machine on the same models and clips, side by side.

    python scripts/bench_gpu.py --time-limit 500
    python scripts/bench_gpu.py --device cpu --quick     the same code on a CPU, tiny models

Where tsformer is not installed, set PYTHONPATH to the project's directory.

Times are of the device alone (CUDA events; clips and results stay on the device), the copy of the
clips to it is a row of its own. All runtimes of a case are timed in turn, round by round. A runtime
that is missing, fails, or is left out for want of time is a row with the reason.

"eager upstream semantics" computes the published FastTimeSformer's function with this project's
code; it is not the published package.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from exporter import environment
from exporter.engine_worker import load_tensorrt, make_logger
from exporter.precision import in_precision
from exporter.rewrite import FOR_A_CPU, apply
from exporter.spec import DEFAULT_OPSET
from exporter.to_engine import FLAVOURS, FlavourStatus, build_engine, probe
from exporter.to_onnx import export_onnx
from model import FastTimeSformer
from model.config import MECHANISM_NAMES, MechanismName, Semantics

ROOT = Path(__file__).resolve().parent.parent
MIN_ROUNDS, WARMUP_RUNS = 5, 3
BF16_OPSET = 22  # the first whose convolution takes bfloat16
PUBLISHED = "eager upstream semantics"
COPY = "copy of the clips to the device"
NOTES = (
    "eager upstream semantics: the published function in this project's code, not the package",
    "errors: relative L2 of the logits against float64 eager of the same semantics and clips",
    "fp16, bf16: as exported: products in it; tokens, norms, softmax, clips and logits in float32",
    "times: milliseconds per batch, of the device alone; the copy of the clips is a row of its own",
)

Status = Literal["timed", "failed", "missing", "left out"]
Run = Callable[[], Tensor]  # one run on the clips of a case; gives its logits, on the device


class UnavailableError(Exception):
    """A runtime that this machine does not have, or that cannot do what the case asks for."""


@dataclass(frozen=True)
class Precision:
    """What a model computes in."""

    name: str  # as `tsformer export --precision` has it
    tf32: bool = False


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("fp32"),
    "tf32": Precision("fp32", tf32=True),
    "fp16": Precision("fp16"),
    "bf16": Precision("bf16"),
}


@dataclass(frozen=True)
class Case:
    """What all runtimes are compared on."""

    mechanism: MechanismName
    resolution: int
    batch: int
    precision: str


@dataclass(frozen=True)
class Sizes:
    """What is the same in all cases."""

    frames: int = 5
    dim: int = 128
    depth: int = 12
    dim_head: int = 64
    rounds: int = 50
    warmup_seconds: float = 0.2
    case_seconds: float = 10.0
    compiler: str = "inductor"


QUICK = Sizes(3, 32, 1, 16, MIN_ROUNDS, 0.0, 1.0, compiler="eager")  # "eager" generates no code


@dataclass(frozen=True)
class Row:
    """One runtime in one case; `speedup` is over PUBLISHED in the same rounds."""

    mechanism: str
    resolution: int
    batch: int
    precision: str
    runtime: str
    status: Status
    reason: str = ""
    p10_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    clips_per_s: float | None = None
    runs: int = 0
    speedup: float | None = None
    rel_l2: float | None = None


@dataclass
class Deadline:
    """When to stop, and how long each runtime took to get ready so far."""

    limit: float
    started: float = field(default_factory=time.monotonic)
    longest: dict[str, float] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """What to say of what was left out."""
        return f"time limit of {self.limit:g} s"

    def left(self) -> float:
        """Seconds until the limit."""
        return self.limit - (time.monotonic() - self.started)

    def allows(self, runtime: str) -> bool:
        """Whether a runtime can get ready in time, as far as earlier cases tell."""
        return self.longest.get(runtime, 0.0) < self.left()

    def note(self, runtime: str, seconds: float) -> None:
        """Remember how long a runtime took to get ready."""
        self.longest[runtime] = max(seconds, self.longest.get(runtime, 0.0))


class Subject:
    """The model and the clips of one case, and what runtimes make of them."""

    def __init__(self, case: Case, sizes: Sizes, device: torch.device, folder: Path) -> None:
        self.case, self.sizes, self.device, self.folder = case, sizes, device, folder
        self.precision = PRECISIONS[case.precision]
        generator = torch.Generator().manual_seed(0)
        shape = (case.batch, sizes.frames, 3, case.resolution, case.resolution)
        video = torch.randn(shape, generator=generator)
        self.host_video = video.pin_memory() if device.type == "cuda" else video
        self.video = video.to(device, copy=True)
        self._truths: dict[Semantics, Tensor] = {}

    def model(self, semantics: Semantics) -> FastTimeSformer:
        """The float32 model, on the CPU, the same in every case of its mechanism and resolution."""
        case, sizes = self.case, self.sizes
        torch.manual_seed(0)
        return FastTimeSformer(
            sizes.frames,
            3,
            case.resolution,
            case.resolution,
            num_classes=2,
            dim=sizes.dim,
            depth=sizes.depth,
            dim_head=sizes.dim_head,
            attn_mechanism=case.mechanism,
            semantics=semantics,
        ).eval()

    def typed_model(self, semantics: Semantics = "paper") -> nn.Module:
        """The eager model in the precision of the case, on the device."""
        return in_precision(self.model(semantics), self.precision.name).to(self.device)

    @cached_property
    def onnx_path(self) -> Path:
        """The graph that `tsformer export` makes, in the precision of the case."""
        path = self.folder / "model.onnx"
        rewritten, _ = apply(self.model("paper"), skip=FOR_A_CPU)
        model = in_precision(rewritten, self.precision.name)
        opset = BF16_OPSET if self.precision.name == "bf16" else DEFAULT_OPSET
        export_onnx(model, {"video": self.host_video}, path, opset=opset)
        return path

    def truth(self, semantics: Semantics) -> Tensor:
        """Logits in float64, clip by clip: a whole batch may not fit the memory."""
        if semantics not in self._truths:
            model = self.model(semantics).double().to(self.device)
            clips = [model(clip[None].double()) for clip in self.video]
            self._truths[semantics] = torch.cat(clips)
        return self._truths[semantics]


# --- runtimes: each makes a run of a subject, or raises


def make_eager(subject: Subject, *, semantics: Semantics = "paper") -> Run:
    """PyTorch as it is."""
    model = subject.typed_model(semantics)
    return lambda: model(subject.video)


def make_compiled(subject: Subject, *, mode: str | None = None) -> Run:
    """torch.compile; with `mode="reduce-overhead"` it captures CUDA graphs."""
    if mode:
        require_cuda(subject)
    model = torch.compile(
        subject.typed_model(), backend=subject.sizes.compiler, mode=mode, dynamic=False
    )

    def run() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return model(subject.video)

    return run


def make_onnxruntime(subject: Subject, *, cuda_graph: bool = False) -> Run:
    """ONNX Runtime on the memory of torch; on a GPU on its stream too."""
    if cuda_graph:
        require_cuda(subject)
    try:
        import onnxruntime
    except ImportError as error:
        raise UnavailableError(f"ONNX Runtime cannot be imported ({error})") from error
    provider, settings = "CPUExecutionProvider", {}
    if subject.device.type == "cuda":
        provider = "CUDAExecutionProvider"
        settings = {
            "device_id": str(subject.device.index or 0),
            "use_tf32": str(int(subject.precision.tf32)),
            "enable_cuda_graph": str(int(cuda_graph)),
            "user_compute_stream": str(torch.cuda.current_stream().cuda_stream),
        }
    if provider not in onnxruntime.get_available_providers():
        raise UnavailableError(f"this ONNX Runtime ({onnxruntime.__version__}) has no {provider}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        subject.onnx_path, options, providers=[(provider, settings)]
    )
    if session.get_providers()[0] != provider:
        raise UnavailableError(f"ONNX Runtime fell back to {session.get_providers()[0]}")
    binding, logits = bind(session.io_binding(), subject)

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return logits

    return run


def bind(binding: Any, subject: Subject) -> tuple[Any, Tensor]:  # noqa: ANN401  # an IOBinding
    """Let a session of ONNX Runtime read the clips, and write the logits, where torch has them."""
    kind, index = subject.device.type, subject.device.index or 0
    video, logits = subject.video, new_logits(subject)
    binding.bind_input("video", kind, index, np.float32, tuple(video.shape), video.data_ptr())
    binding.bind_output("logits", kind, index, np.float32, tuple(logits.shape), logits.data_ptr())
    return binding, logits


def make_tensorrt(subject: Subject, *, flavour: str) -> Run:
    """A TensorRT engine on the memory of torch."""
    require_cuda(subject)
    if subject.precision.tf32:
        raise UnavailableError("engines of this project are built with TF32 off")
    status = probe_once(flavour)
    if status.version is None:
        raise UnavailableError(status.reason)
    path = subject.folder / f"{flavour}.engine"
    if not path.exists():
        build_engine(subject.onnx_path, path, flavour=flavour)
    complaints: list[str] = []
    trt = load_tensorrt(FLAVOURS[flavour].module)
    logger = make_logger(
        trt, lambda severity, text: complaints.append(text) if "ERROR" in severity else None
    )
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context() if engine else None
    logits = new_logits(subject)
    tensors = {"video": subject.video, "logits": logits}
    if not context or not all(
        context.set_tensor_address(name, tensor.data_ptr()) for name, tensor in tensors.items()
    ):
        raise RuntimeError("; ".join(complaints) or "the engine cannot be loaded")
    kept = (logger, runtime, engine, context)  # a tuple lets go of its last item first, as needed
    return partial(execute_engine, kept, tensors, complaints)


def execute_engine(
    kept: tuple[Any, ...], tensors: Mapping[str, Tensor], complaints: Sequence[str]
) -> Tensor:
    """Run an engine once, on the current stream."""
    if not kept[-1].execute_async_v3(torch.cuda.current_stream().cuda_stream):
        raise RuntimeError("; ".join(complaints) or "execution failed")
    return tensors["logits"]


def make_captured(subject: Subject, *, make: Callable[[Subject], Run]) -> Run:
    """Another runtime, its launches captured once in a CUDA graph and replayed."""
    require_cuda(subject)
    launch = make(subject)
    for _ in range(3):  # whatever allocates or tunes at first must not be captured
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = launch()

    return partial(replay, graph, logits, launch)


def replay(graph: torch.cuda.CUDAGraph, logits: Tensor, _kept: Run) -> Tensor:
    """Launch what was captured; it uses memory that the captured runtime owns."""
    graph.replay()
    return logits


RUNTIMES: dict[str, Callable[[Subject], Run]] = {
    PUBLISHED: partial(make_eager, semantics="upstream"),
    "eager": make_eager,
    "eager, CUDA graph": partial(make_captured, make=make_eager),
    "torch.compile": make_compiled,
    "torch.compile, CUDA graph": partial(make_compiled, mode="reduce-overhead"),
    "onnxruntime": make_onnxruntime,
    "onnxruntime, CUDA graph": partial(make_onnxruntime, cuda_graph=True),
}
for _name, _flavour in FLAVOURS.items():
    _make = partial(make_tensorrt, flavour=_name)
    RUNTIMES[_flavour.module] = _make
    RUNTIMES[f"{_flavour.module}, CUDA graph"] = partial(make_captured, make=_make)


def require_cuda(subject: Subject) -> None:
    """Raise `UnavailableError` unless the subject is on a GPU."""
    if subject.device.type != "cuda":
        raise UnavailableError("needs a CUDA device")


def new_logits(subject: Subject) -> Tensor:
    """Memory for the result of a runtime that does not make it itself."""
    return torch.empty(subject.case.batch, 2, device=subject.device)


@cache
def probe_once(flavour: str) -> FlavourStatus:
    """Whether a flavour of TensorRT works here; asking takes a process."""
    return probe(flavour)


# --- timing


def time_on_cpu(run: Callable[[], object]) -> float:
    """Seconds of one run, by the clock on the wall."""
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def time_on_cuda(run: Callable[[], object]) -> float:
    """Seconds of one run between two events on the current stream, which must be idle."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


CLOCKS: Mapping[str, Callable[[Callable[[], object]], float]] = {
    "cpu": time_on_cpu,
    "cuda": time_on_cuda,
}


def measure(subject: Subject, runtimes: Sequence[str], deadline: Deadline) -> list[Row]:
    """All rows of one case: those timed, then those that could not be."""
    torch.backends.cuda.matmul.allow_tf32 = subject.precision.tf32
    torch.backends.cudnn.allow_tf32 = subject.precision.tf32
    torch._dynamo.reset()  # its limit of recompilations would count those of all cases
    ready, rows = prepare(subject, runtimes, deadline)
    copied = torch.empty_like(subject.video)
    runs: dict[str, Callable[[], object]] = {name: run for name, (run, _) in ready.items()}
    runs[COPY] = lambda: copied.copy_(subject.host_video, non_blocking=True)
    seconds = time_rounds(runs, subject, deadline)
    timed = []
    for name, taken in seconds.items():
        published = seconds.get(PUBLISHED) if name in ready else None
        figures = summarize(taken, subject.case.batch, published)
        row = Row(**asdict(subject.case), runtime=name, status="timed", **figures)
        if name in ready:
            error = ready[name][1]
            finite = math.isfinite(error)
            row = replace(row, rel_l2=error if finite else None)
            row = row if finite else replace(row, reason="the logits are not finite")
        timed.append(row)
    return timed + rows


def prepare(
    subject: Subject, runtimes: Sequence[str], deadline: Deadline
) -> tuple[dict[str, tuple[Run, float]], list[Row]]:
    """Make and warm up the runtimes: each with its error, or a row that says why not."""
    ready: dict[str, tuple[Run, float]] = {}
    rows: list[Row] = []
    for name in runtimes:
        row = partial(Row, **asdict(subject.case), runtime=name)
        if not deadline.allows(name):
            rows.append(row(status="left out", reason=deadline.reason))
            continue
        started = time.monotonic()
        try:
            run = RUNTIMES[name](subject)
            ready[name] = run, warm_up(subject, run, "upstream" if name == PUBLISHED else "paper")
        except UnavailableError as error:
            rows.append(row(status="missing", reason=str(error)))
        except Exception as error:  # whatever a runtime raises is what there is to say of it
            rows.append(row(status="failed", reason=describe_error(error)))
        deadline.note(name, time.monotonic() - started)
    return ready, rows


def warm_up(subject: Subject, run: Run, semantics: Semantics) -> float:
    """Run until everything is made and tuned; give the error of the last logits."""
    until = time.monotonic() + subject.sizes.warmup_seconds
    runs = 0
    while runs < WARMUP_RUNS or time.monotonic() < until:
        CLOCKS[subject.device.type](run)  # waits for each, or the device would queue up thousands
        runs += 1
    logits = run()
    truth = subject.truth(semantics)
    return float((logits.double() - truth).norm() / truth.norm())


def time_rounds(
    runs: Mapping[str, Callable[[], object]], subject: Subject, deadline: Deadline
) -> dict[str, list[float]]:
    """Seconds of every run, each once a round, in an order that turns."""
    clock, sizes, names = CLOCKS[subject.device.type], subject.sizes, list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    until = time.monotonic() + min(sizes.case_seconds, deadline.left())
    for done in range(sizes.rounds):
        if done >= MIN_ROUNDS and time.monotonic() >= until:
            break
        for place in range(len(names)):
            name = names[(place + done) % len(names)]
            seconds[name].append(clock(runs[name]))
    return seconds


def summarize(
    seconds: Sequence[float], batch: int, published: Sequence[float] | None
) -> dict[str, Any]:
    """The figures of a timed row (pure)."""
    p10, p50, p90 = (float(ms) for ms in np.percentile(np.asarray(seconds) * 1e3, [10, 50, 90]))
    speedup = None
    if published:
        speedup = float(np.median(np.asarray(published) / np.asarray(seconds)))
    return {
        "p10_ms": p10,
        "p50_ms": p50,
        "p90_ms": p90,
        "clips_per_s": batch * 1e3 / p50,
        "runs": len(seconds),
        "speedup": speedup,
    }


def describe_error(error: Exception) -> str:
    """Class and beginning of a message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# --- the whole run


def measure_all(
    cases: Sequence[Case],
    runtimes: Sequence[str],
    sizes: Sizes,
    device: torch.device,
    deadline: Deadline,
) -> Iterator[list[Row]]:
    """The rows of one case after the other; past the deadline they say so."""
    for case in cases:
        rows = partial(_rows_of_all, case, runtimes)
        if deadline.left() <= 0:
            yield rows("left out", deadline.reason)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield measure(Subject(case, sizes, device, Path(folder)), runtimes, deadline)
            except Exception as error:  # out of memory, say; other cases may do
                yield rows("failed", describe_error(error))
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _rows_of_all(case: Case, runtimes: Sequence[str], status: Status, reason: str) -> list[Row]:
    return [Row(**asdict(case), runtime=name, status=status, reason=reason) for name in runtimes]


def describe(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on and with."""
    git = ("git", "-C", str(ROOT))
    facts = environment.describe() | {
        "commit": _ask(*git, "rev-parse", "HEAD"),
        "uncommitted_changes": bool(_ask(*git, "status", "--porcelain")),
    }
    if device.type == "cpu":
        return facts | {"device": facts["cpu"], "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    driver = _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return facts | {
        "device": properties.name,
        "device_memory_gb": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _ask(*command: str) -> str | None:
    """What a command prints, or none where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write(out: Path, facts: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write everything to `out` as JSON, and the rows beside it as CSV."""
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {**facts, "notes": NOTES, "rows": [asdict(row) for row in rows]}
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    context = {name: facts["environment"][name] for name in ("date", "device", "commit")}
    names = [*(field.name for field in fields(Row)), *context]
    with out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), **context} for row in rows)


def show(row: Row) -> None:
    """Print one row."""
    case = f"{row.mechanism:<11}{row.resolution:>4} px  batch {row.batch:<3}{row.precision}"
    what = f"{row.status}: {row.reason}"
    if row.p50_ms is not None:
        speedup = f"{row.speedup:6.2f}x" if row.speedup else ""
        error = f"error {row.rel_l2:.1e}" if row.rel_l2 is not None else row.reason
        what = f"{row.p50_ms:9.3f} ms  {speedup}  {error}"
    print(f"{case}  {row.runtime:<32}  {what}", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time every runtime of a GPU machine.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny models, few rounds")
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results" / "gpu.json")
    for name, choices in (
        ("--mechanisms", MECHANISM_NAMES),
        ("--precisions", PRECISIONS),
        ("--runtimes", RUNTIMES),
    ):
        parser.add_argument(name, nargs="+", choices=list(choices), default=list(choices))
    parser.add_argument("--resolutions", nargs="+", type=int, help="default: 224 512; quick: 32")
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 1])
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 0 if anything was timed."""
    asked = parse(arguments)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device; --device cpu --quick tries the script without one", file=sys.stderr)
        return 2
    deadline = Deadline(asked.time_limit)
    sizes = QUICK if asked.quick else Sizes()
    cases = [
        Case(mechanism, resolution, batch, precision)
        for resolution in asked.resolutions or ([32] if asked.quick else [224, 512])
        for batch in asked.batches
        for precision in asked.precisions
        for mechanism in asked.mechanisms
    ]
    facts = {"environment": describe(device), "settings": asdict(sizes)}
    rows: list[Row] = []
    with torch.no_grad(), on_own_stream(device):
        for made in measure_all(cases, asked.runtimes, sizes, device, deadline):
            rows += made
            write(asked.out, facts, rows)  # after every case: the run may be cut short
            for row in made:
                show(row)
    counts = Counter(row.status for row in rows)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    print(f"{asked.out} and .csv")
    return 0 if counts["timed"] else 1


def on_own_stream(device: torch.device) -> AbstractContextManager[object]:
    """A stream that is not the default one, which neither CUDA graphs nor TensorRT can use."""
    if device.type == "cpu":
        return nullcontext()
    torch.cuda.set_device(device)
    return torch.cuda.stream(torch.cuda.Stream(device))


if __name__ == "__main__":
    sys.exit(main())
