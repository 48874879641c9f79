"""Files of an export -> the runners that can run them on this machine; needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import RuntimeFailure
from exporter.errors.install import how_to_install
from exporter.results import Parity
from exporter.runners.base import EVALUATOR, Runner
from exporter.runners.cuda import NO_GPU, look_for_gpu
from exporter.runners.onnxruntime import PLUGIN, OnnxRuntimeRunner, available_devices
from exporter.runners.onnxruntime_cuda import open_onnxruntime
from exporter.runners.openvino import (
    WITH_BF16,
    OpenVinoRunner,
    is_installed,
    require_precision,
)
from exporter.runners.tensorrt import TensorRtRunner
from exporter.to_engine.flavours import FLAVOUR_OF_MODULE

# These run on a CPU the graph that the engine is built from.
TENSORRT_GRAPH_RUN = f"{OnnxRuntimeRunner.name}-tensorrt"
TENSORRT_GRAPH_EVALUATED = f"{EVALUATOR}-tensorrt"
# This runs the graph for OpenVINO, in float32.
OPENVINO_GRAPH_RUN = f"{OnnxRuntimeRunner.name}-{OpenVinoRunner.name}"
# Runtimes that are judged and not timed, since nobody deploys them.
FOR_PROOF_ONLY = (EVALUATOR, TENSORRT_GRAPH_RUN, TENSORRT_GRAPH_EVALUATED, OPENVINO_GRAPH_RUN)
# No other runtime of a CPU computes in these precisions.
EVALUATED = ("fp16", "bf16")


@dataclass(frozen=True)
class Opened:
    """The runners that are open, and a parity row for each runtime that could not be opened."""

    runners: tuple[Runner, ...] = ()
    absences: tuple[Parity, ...] = ()

    def __add__(self, other: Opened) -> Opened:
        return Opened(self.runners + other.runners, self.absences + other.absences)

    @property
    def for_accuracy(self) -> tuple[Runner, ...]:
        """The runners whose accuracy is measured: of the slow evaluator, one graph is enough."""
        return tuple(run for run in self.runners if run.name != TENSORRT_GRAPH_EVALUATED)

    @property
    def has_engine(self) -> bool:
        """Whether one of the runners executes an engine."""
        return any(isinstance(runner, TensorRtRunner) for runner in self.runners)


def load_onnx(
    path: Path, precision: str, resources: ExitStack, *, threads: int, evaluate: bool = True
) -> Opened:
    """Open a graph in ONNX Runtime on every device that it can use here.

    With `evaluate`, a graph of fp16 or bf16 is also opened in the evaluator that computes in that
    precision. `threads` are those of a run on the CPU.

    Raises:
        RuntimeFailure: if a float32 graph does not load on the CPU.
    """
    opened = Opened()
    for device in available_devices():
        gpu = None if device == "cpu" else look_for_gpu()
        if gpu is None or gpu.gpu:
            opened += _load_onnx_on(device, path, precision, resources, threads)
        elif gpu.seen:
            opened += absent("onnxruntime", device, precision, gpu.why_not)
    if evaluate and precision in EVALUATED:
        opened += _load_evaluator(path, precision, resources)
    return opened


def _load_evaluator(
    path: Path, precision: str, resources: ExitStack, name: str = EVALUATOR
) -> Opened:
    try:
        from exporter.runners.reference import ReferenceRunner
    except ModuleNotFoundError as error:
        reason = f"it needs {error.name}, which is not installed; {how_to_install('onnx')}"
        return absent(name, "cpu", precision, reason)
    evaluator = ReferenceRunner(path, precision)
    evaluator.name = name
    return Opened((resources.enter_context(evaluator),))


def _load_onnx_on(
    device: str, path: Path, precision: str, resources: ExitStack, threads: int
) -> Opened:
    if device == PLUGIN and precision == "fp32":
        reason = "this provider has no option to switch TF32 off, so float32 is not asked of it"
        return absent("onnxruntime", device, precision, reason)
    try:
        session = open_onnxruntime(path, device, threads=threads, precision=precision)
    except RuntimeFailure as error:
        if device == "cpu" and precision == "fp32":
            raise
        return absent("onnxruntime", device, precision, str(error))
    return Opened((resources.enter_context(session),))


def load_graphs(
    path: Path,
    for_engine: Path | None,
    precision: str,
    resources: ExitStack,
    *,
    threads: int,
) -> Opened:
    """Open `model.onnx`, and on the CPU the graph that the engine is built from, if there is one.

    Raises:
        RuntimeFailure: if a float32 graph does not load, or nothing here computes the graph of the
            engine.
    """
    opened = load_onnx(path, precision, resources, threads=threads)
    if for_engine is None:
        return opened
    if precision in EVALUATED:
        opened += _load_evaluator(for_engine, precision, resources, TENSORRT_GRAPH_EVALUATED)
    if precision != "bf16":  # which ONNX Runtime does not have on a CPU
        session = OnnxRuntimeRunner(
            for_engine, threads=threads, precision=precision, integer_kernels=False
        )
        session.name = TENSORRT_GRAPH_RUN
        opened += Opened((resources.enter_context(session),))
    return opened


def is_openvino_wanted(runtimes: Collection[str], precision: str, keep_fp32: Sequence[str]) -> bool:
    """Tell whether an export is for OpenVINO: it is named, or nothing is and it works here."""
    return "openvino" in (runtimes or (["openvino"] if works_here(precision, keep_fp32) else ()))


def works_here(precision: str, keep_fp32: Sequence[str]) -> bool:
    """Tell whether OpenVINO is installed, and computes in a precision on this CPU."""
    return is_installed() and not _why_no_openvino(precision, "fp32", keep_fp32)


def load_openvino(
    graph: Path | None,
    precision: str,
    resources: ExitStack,
    *,
    threads: int,
    keep_fp32: Sequence[str] = (),
    named: bool = True,
    prove: bool = False,
) -> Opened:
    """Open a graph in OpenVINO, in the precision of the export.

    An int8 graph is opened a second time, with bf16 between the products.

    Args:
        graph: The graph for OpenVINO; None if the export has none.
        precision: The precision of the export.
        resources: What closes the runners.
        threads: Threads of a run.
        keep_fp32: The modules of the export that stay in float32.
        named: Whether OpenVINO was asked for. If not, it gives a row only where it runs.
        prove: Open the graph in ONNX Runtime too: it computes the types that the graph has, so a
            graph for bf16 is proven in float32 on any CPU.

    Raises:
        RuntimeFailure: if a float32 graph does not load.
    """
    rests = {OpenVinoRunner.name: "fp32"} | ({WITH_BF16: "bf16"} if precision == "int8" else {})
    opened = Opened()
    if prove and graph is not None:
        typed = "int8" if precision == "int8" else "fp32"
        opened += _load_beside(graph, typed, resources, threads)
    for name, rest in rests.items():
        reason = _why_no_openvino(precision, rest, keep_fp32)
        if graph is None and not reason:
            reason = "the export has no graph for OpenVINO: export it again with --for openvino"
        if graph is None or reason:
            opened += absent(name, "cpu", precision, reason) if named else Opened()
            continue
        try:
            runner = OpenVinoRunner(graph, precision, threads=threads, rest=rest)
        except RuntimeFailure as error:
            if precision == "fp32":
                raise
            opened += absent(name, "cpu", precision, str(error))
        else:
            opened += Opened((resources.enter_context(runner),))
    return opened


def _load_beside(graph: Path, precision: str, resources: ExitStack, threads: int) -> Opened:
    """Open the graph for OpenVINO in ONNX Runtime."""
    try:
        session = OnnxRuntimeRunner(graph, threads=threads, precision=precision)
    except RuntimeFailure as error:
        return absent(OPENVINO_GRAPH_RUN, "cpu", precision, str(error))
    session.name = OPENVINO_GRAPH_RUN
    return Opened((resources.enter_context(session),))


def _why_no_openvino(precision: str, rest: str, keep_fp32: Sequence[str]) -> str:
    """Say why OpenVINO does not compute so here; empty if it does."""
    try:
        require_precision(precision, rest, keep_fp32)
    except RuntimeFailure as error:
        return str(error)
    return ""


def load_engine(module: str | None, path: Path, precision: str, resources: ExitStack) -> Opened:
    """Open an engine that the package `module` built; nothing is opened without a module."""
    if module is None:
        return Opened()
    status = look_for_gpu()
    if status.gpu is None:
        reason = status.why_not if status.seen else f"{NO_GPU} to execute the engine"
        return absent(module, "none", precision, reason)
    try:
        engine = TensorRtRunner(path, FLAVOUR_OF_MODULE[module], precision)
    except RuntimeFailure as error:
        return absent(module, "cuda", precision, str(error))
    return Opened((resources.enter_context(engine),))


def absent(runtime: str, device: str, precision: str, reason: str) -> Opened:
    """Make the row of a runtime that does not run here, with the reason."""
    return Opened((), (Parity(runtime, device, precision, "not-run", reason=reason),))
