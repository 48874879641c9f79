"""The runtimes that `bench_gpu.py` compares. Each one turns a subject into a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from subject import Subject
from torch import Tensor

from exporter.to_engine.build import FLAVOURS, FlavourStatus, build_engine, probe
from exporter.to_engine.worker import load_tensorrt, make_logger
from model.config import Semantics

PUBLISHED = "eager upstream semantics"
Run = Callable[[], Tensor]  # runs the clips of a case once; returns the logits, on the device


class UnavailableError(Exception):
    """This machine lacks the runtime, or the runtime does not support the case."""


def make_eager(subject: Subject, *, semantics: Semantics = "paper") -> Run:
    """Make a run of PyTorch in eager mode."""
    model = subject.typed_model(semantics)
    return lambda: model(subject.video)


def make_compiled(subject: Subject, *, mode: str | None = None) -> Run:
    """Make a run of torch.compile; `mode="reduce-overhead"` captures CUDA graphs."""
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
    """Make a run of ONNX Runtime on torch's memory; on a GPU it also uses torch's stream."""
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
    """Bind a session of ONNX Runtime to torch's memory of the clips and the logits."""
    kind, index = subject.device.type, subject.device.index or 0
    video, logits = subject.video, new_logits(subject)
    binding.bind_input("video", kind, index, np.float32, tuple(video.shape), video.data_ptr())
    binding.bind_output("logits", kind, index, np.float32, tuple(logits.shape), logits.data_ptr())
    return binding, logits


def make_tensorrt(subject: Subject, *, flavour: str) -> Run:
    """Make a run of a TensorRT engine on torch's memory."""
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
    # A tuple releases its last item first: the context must go before the engine and the runtime.
    kept = (logger, runtime, engine, context)
    return partial(execute_engine, kept, tensors, complaints)


def execute_engine(
    kept: tuple[Any, ...], tensors: Mapping[str, Tensor], complaints: Sequence[str]
) -> Tensor:
    """Run an engine once, on the current stream."""
    if not kept[-1].execute_async_v3(torch.cuda.current_stream().cuda_stream):
        raise RuntimeError("; ".join(complaints) or "execution failed")
    return tensors["logits"]


def make_captured(subject: Subject, *, make: Callable[[Subject], Run]) -> Run:
    """Make a run that captures another runtime's launches in a CUDA graph and replays them."""
    require_cuda(subject)
    launch = make(subject)
    for _ in range(3):  # the graph must not capture the first allocations and the tuning
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = launch()

    return partial(replay, graph, logits, launch)


def replay(graph: torch.cuda.CUDAGraph, logits: Tensor, _kept: Run) -> Tensor:
    """Replay a captured graph; `_kept` is the captured runtime, which owns the memory."""
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
    """Allocate the logits for a runtime that does not allocate its own result."""
    return torch.empty(subject.case.batch, 2, device=subject.device)


@cache
def probe_once(flavour: str) -> FlavourStatus:
    """Probe a flavour of TensorRT once; the probe starts a process."""
    return probe(flavour)
