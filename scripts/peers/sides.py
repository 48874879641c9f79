"""The sides that `bench_peers.py` compares: read the name of a side, and prepare its run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from published import HuggingFaceTimeSformer, as_published
from torch import nn

from exporter.errors import RuntimeFailure
from exporter.inputs.synthetic import synthetic_inputs
from exporter.rewrite.choose import rewrite_for_export
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.runners.openvino import require_precision
from exporter.spec import DEFAULT_OPSET, ExportSpec
from exporter.to_onnx.export import export_onnx
from exporter.to_onnx.quantize import quantize
from model import FastTimeSformer, TimeSformerViT
from model.classifier import VideoClassifier
from model.config import MECHANISM_NAMES

if TYPE_CHECKING:
    from openvino import InferRequest  # pyright: ignore[reportMissingImports]  # an optional peer

TRUTH_CLIPS = 2  # clips of a batch that have a float64 truth, which is slow to compute
# The fixed semantics of a source; None: those of the pair.
SOURCES = {
    "published": "upstream",
    "einsum": "paper",
    "plain": None,
    "ours": None,
    "uncut": None,
    "half": None,
    "eight": None,
}
# The sources that tsformer exports for OpenVINO in a precision, whatever that of the pair is.
FOR_OPENVINO = {"half": "bf16", "eight": "int8"}
# The sources that tsformer exports, and the rewrites that they leave out.
# Those that `uncut` leaves out suit the caches and threads of ONNX Runtime.
OURS = {
    "ours": (),
    "uncut": ("fold_norm", "bias_apart", "cut_attention", "cut_feed_forward"),
    **dict.fromkeys(FOR_OPENVINO, ()),
}
RUN_OURS = {"onnxruntime", "openvino", "openvino-bf16"}
FROZEN = {"freezing": True}  # inductor may change the layout of the weights in advance
# The pattern matcher of inductor (torch 2.13) fails on attention over 5 axes.
UNMATCHED = {"pattern_matcher": False}
Run = Callable[[], np.ndarray]  # runs the clips of a pair once; returns the logits


class UnavailableError(Exception):
    """The side does not exist, or its package is not installed."""


@dataclass(frozen=True)
class Pair:
    """Two sides to compare and their settings; `processes` processes measure them in sequence."""

    model: str
    mechanism: str
    resolution: int
    batch: int
    semantics: str
    ours: str
    peer: str
    precision: str
    threads: int
    processes: int
    rounds: int
    seconds: float
    frames: int
    dim: int
    depth: int


class Side(NamedTuple):
    """One side of a pair, parsed from its name; `semantics` are those of the side itself."""

    source: str
    runtime: str
    mechanism: Any  # one of MECHANISM_NAMES
    semantics: Any


def resolve(name: str, pair: Pair) -> Side:
    """Read `SOURCE/RUNTIME[@MECHANISM]`."""
    what, _, mechanism = name.partition("@")
    source, _, runtime = what.partition("/")
    side = Side(source, runtime, mechanism or pair.mechanism, SOURCES.get(source) or pair.semantics)
    known = source in SOURCES and runtime in RUNTIMES and side.mechanism in MECHANISM_NAMES
    if not known or (source in OURS and runtime not in RUN_OURS):
        raise UnavailableError(f"there is no {name!r}")
    return side


def make_clips(pair: Pair) -> np.ndarray:
    """Make the clips of a pair, `(b, f, 3, h, w)`; each call gives the same values."""
    shape = (pair.batch, pair.frames, 3, pair.resolution, pair.resolution)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def make_module(side: Side, pair: Pair) -> nn.Module:
    """Make the eager float32 module of a side; each call gives the same weights."""
    torch.manual_seed(0)
    res, frames, dim, depth = pair.resolution, pair.frames, pair.dim, pair.depth
    if pair.model == "vit":
        heads = max(1, dim // 64)
        vit = TimeSformerViT(
            frames, res, res, dim=dim, depth=depth, heads=heads, attn=side.mechanism
        )
        if side.source == "einsum":
            raise UnavailableError("vit has no plain einsum form")
        return (HuggingFaceTimeSformer(vit.config) if side.source == "published" else vit).eval()
    model = FastTimeSformer(
        frames,
        3,
        res,
        res,
        num_classes=2,
        dim=dim,
        depth=depth,
        attn_mechanism=side.mechanism,
        semantics=side.semantics,
    ).eval()
    return as_published(model) if side.source in {"published", "einsum"} else model


def run_eager(side: Side, pair: Pair, video: np.ndarray, _folder: Path) -> Run:
    """Prepare PyTorch in eager mode."""
    module, clips = make_module(side, pair), torch.from_numpy(video)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return module(clips).float().numpy()

    return run


def run_compiled(
    side: Side,
    pair: Pair,
    video: np.ndarray,
    _folder: Path,
    *,
    options: dict[str, Any] | None = None,
) -> Run:
    """Prepare `torch.compile` for the CPU, with options of inductor."""
    module = torch.compile(make_module(side, pair), dynamic=False, options=options)
    clips = torch.from_numpy(video)
    return lambda: module(clips).numpy()


def run_onnxruntime(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> Run:
    """Prepare ONNX Runtime on the CPU."""
    runner = OnnxRuntimeRunner(find_graph(side, pair, video, folder), threads=pair.threads)
    return lambda: runner.run({"video": video})["logits"]


def run_autocast(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> Run:
    """Prepare PyTorch in eager mode, with products in bf16."""
    run = run_eager(side, pair, video, folder)

    def run_in_bf16() -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return run()

    return run_in_bf16


def run_openvino(
    side: Side, pair: Pair, video: np.ndarray, folder: Path, *, hint: str = "f32"
) -> Run:
    """Prepare OpenVINO for latency, in the precision of a hint."""
    if hint == "bf16":
        try:
            require_precision("bf16")
        except RuntimeFailure as error:
            raise UnavailableError(str(error)) from error
    request = open_openvino(find_graph(side, pair, video, folder), pair.threads, hint)
    return lambda: request.infer([video], share_inputs=True, share_outputs=True)[0]


def open_openvino(graph: Path | bytes, threads: int, hint: str = "f32") -> InferRequest:
    """Compile a graph in OpenVINO and return an infer request."""
    try:
        import openvino  # pyright: ignore[reportMissingImports]  # an optional peer
    except ImportError as error:
        raise UnavailableError("openvino is not installed") from error
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    core = openvino.Core()
    model = core.read_model(graph, b"") if isinstance(graph, bytes) else graph
    return core.compile_model(model, "CPU", settings).create_infer_request()


RUNTIMES: Mapping[str, Callable[[Side, Pair, np.ndarray, Path], Run]] = {
    "eager": run_eager,
    "eager-bf16": run_autocast,
    "compile": run_compiled,
    "frozen": partial(run_compiled, options=FROZEN),
    "unmatched": partial(run_compiled, options=UNMATCHED),
    "frozen-unmatched": partial(run_compiled, options=FROZEN | UNMATCHED),
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
    "openvino-bf16": partial(run_openvino, hint="bf16"),
}


def find_graph(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> Path:
    """Return the ONNX file of a side; export it unless another pair did."""
    path = folder / f"{'-'.join((side.source, side.mechanism, side.semantics))}.onnx"
    if not path.exists():
        module, part = make_module(side, pair), path.with_suffix(".part")
        if side.source in OURS:
            export_ours(module, part, torch.from_numpy(video), pair.precision, side.source)
        else:
            export_plain(module, part, torch.from_numpy(video))
        part.rename(path)
    return path


def export_plain(module: nn.Module, path: Path, video: torch.Tensor) -> None:
    """Export with torch's own exporter and its default optimisation."""
    names: dict[str, Any] = {"input_names": ["video"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (video,), dynamo=True, verbose=False, **names)
    assert program is not None
    program.save(path)


def export_ours(
    module: nn.Module, path: Path, video: torch.Tensor, precision: str, source: str
) -> None:
    """Export as `tsformer export` does."""
    assert isinstance(module, VideoClassifier)
    target = "openvino" if source in FOR_OPENVINO else None
    precision = FOR_OPENVINO.get(source, precision)
    spec = ExportSpec(batch=len(video), precision=precision, no_rewrite=OURS[source])
    rewritten = rewrite_for_export(spec, module, target)
    export_onnx(rewritten, {"video": video}, path, opset=DEFAULT_OPSET)
    if precision == "int8":
        _, frames, channels, height, width = video.shape
        clips = np.stack([clip for _, clip in synthetic_inputs(frames, channels, height, width)])
        quantize(path, path, {"video": clips}, form="onnxruntime")


def find_truth(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> np.ndarray:
    """Return the float64 logits of the first clips; compute them unless another pair did."""
    source = "plain" if side.source in OURS else side.source
    path = folder / f"{'-'.join((source, side.mechanism, side.semantics))}.npy"
    if not path.exists():
        module = make_module(side, pair).double()
        clips = torch.from_numpy(video[:TRUTH_CLIPS]).double()
        np.save(path, torch.cat([module(clip[None]) for clip in clips]).numpy())
    return np.load(path)
