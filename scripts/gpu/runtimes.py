"""The runtimes that `bench_gpu.py` compares: each makes a run of a subject."""

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
Run = Callable[[], Tensor]  # one run on the clips of a case; gives its logits, on the device


class UnavailableError(Exception):
    """A runtime that this machine does not have, or that cannot do what the case asks for."""


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
