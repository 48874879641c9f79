"""The sides that `bench_peers.py` compares: what a name stands for, made ready to run."""

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

from exporter.inputs.synthetic import synthetic_inputs
from exporter.rewrite.choose import rewrite_for_export
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.spec import DEFAULT_OPSET, ExportSpec
from exporter.to_onnx.export import export_onnx
from exporter.to_onnx.quantize import quantize
from model import FastTimeSformer, TimeSformerViT
from model.classifier import VideoClassifier
from model.config import MECHANISM_NAMES

if TYPE_CHECKING:
    from openvino import InferRequest  # pyright: ignore[reportMissingImports]  # an optional peer

TRUTH_CLIPS = 2  # of a batch: float64 takes long
# The semantics that a source is bound to, if any.
SOURCES = {"published": "upstream", "einsum": "paper", "plain": None, "ours": None, "uncut": None}
# What the product writes, and the runtime it lays the model out for.
OURS = {"ours": "onnxruntime", "uncut": "tensorrt"}
FROZEN = {"freezing": True}  # the weights may be laid out beforehand
# inductor (torch 2.13) fails on attention over 5 axes when it matches the pattern.
UNMATCHED = {"pattern_matcher": False}
Run = Callable[[], np.ndarray]  # one run on the clips of a pair; gives its logits


class UnavailableError(Exception):
    """A side that is not installed, or that there is not."""


@dataclass(frozen=True)
class Pair:
    """What is measured, in `processes` processes one after the other."""

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
    """One side of a pair, its name read; the semantics are its own."""

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
    if not known or (source in OURS and runtime not in {"onnxruntime", "openvino"}):
        raise UnavailableError(f"there is no {name!r}")
    return side


def make_clips(pair: Pair) -> np.ndarray:
    """The clips of a pair, the same each time: `(b, f, 3, h, w)`."""
    shape = (pair.batch, pair.frames, 3, pair.resolution, pair.resolution)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def make_module(side: Side, pair: Pair) -> nn.Module:
    """The eager module of a side in float32, with the same weights each time."""
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
    """PyTorch as it is."""
    module, clips = make_module(side, pair), torch.from_numpy(video)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return module(clips).numpy()

    return run


def run_compiled(
    side: Side,
    pair: Pair,
    video: np.ndarray,
    _folder: Path,
    *,
    options: dict[str, Any] | None = None,
) -> Run:
    """`torch.compile` for CPU, with options of inductor."""
    module = torch.compile(make_module(side, pair), dynamic=False, options=options)
    clips = torch.from_numpy(video)
    return lambda: module(clips).numpy()


def run_onnxruntime(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> Run:
    """ONNX Runtime on the CPU."""
    runner = OnnxRuntimeRunner(find_graph(side, pair, video, folder), threads=pair.threads)
    return lambda: runner.run({"video": video})["logits"]


def run_openvino(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> Run:
    """OpenVINO in float32, which is not its default, set for latency."""
    request = open_openvino(find_graph(side, pair, video, folder), pair.threads)
    return lambda: request.infer([video], share_inputs=True, share_outputs=True)[0]


def open_openvino(graph: Path | bytes, threads: int) -> InferRequest:
    """An infer request of OpenVINO."""
    try:
        import openvino  # pyright: ignore[reportMissingImports]  # an optional peer
    except ImportError as error:
        raise UnavailableError("openvino is not installed") from error
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    core = openvino.Core()
    model = core.read_model(graph, b"") if isinstance(graph, bytes) else graph
    return core.compile_model(model, "CPU", settings).create_infer_request()


RUNTIMES: Mapping[str, Callable[[Side, Pair, np.ndarray, Path], Run]] = {
    "eager": run_eager,
    "compile": run_compiled,
    "frozen": partial(run_compiled, options=FROZEN),
    "unmatched": partial(run_compiled, options=UNMATCHED),
    "frozen-unmatched": partial(run_compiled, options=FROZEN | UNMATCHED),
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
}


def find_graph(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> Path:
    """The ONNX file of a side, exported unless another pair has done so."""
    path = folder / f"{'-'.join((side.source, side.mechanism, side.semantics))}.onnx"
    if not path.exists():
        module, part = make_module(side, pair), path.with_suffix(".part")
        if side.source in OURS:
            layout = OURS[side.source]
            export_ours(module, part, torch.from_numpy(video), pair.precision, layout)
        else:
            export_plain(module, part, torch.from_numpy(video))
        part.rename(path)
    return path


def export_plain(module: nn.Module, path: Path, video: torch.Tensor) -> None:
    """What torch writes by itself, with the optimisation that is its default."""
    names: dict[str, Any] = {"input_names": ["video"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (video,), dynamo=True, verbose=False, **names)
    assert program is not None
    program.save(path)


def export_ours(
    module: nn.Module, path: Path, video: torch.Tensor, precision: str, layout: str
) -> None:
    """What the product writes."""
    assert isinstance(module, VideoClassifier)
    spec = ExportSpec(batch=len(video), precision=precision, optimize_for=layout)
    rewritten = rewrite_for_export(spec, module)
    export_onnx(rewritten, {"video": video}, path, opset=DEFAULT_OPSET)
    if precision == "int8":
        _, frames, channels, height, width = video.shape
        clips = np.stack([clip for _, clip in synthetic_inputs(frames, channels, height, width)])
        quantize(path, path, {"video": clips}, form="onnxruntime")


def find_truth(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> np.ndarray:
    """Logits of the first clips in float64, computed unless another pair has done so."""
    source = "plain" if side.source in OURS else side.source
    path = folder / f"{'-'.join((source, side.mechanism, side.semantics))}.npy"
    if not path.exists():
        module = make_module(side, pair).double()
        clips = torch.from_numpy(video[:TRUTH_CLIPS]).double()
        np.save(path, torch.cat([module(clip[None]) for clip in clips]).numpy())
    return np.load(path)
