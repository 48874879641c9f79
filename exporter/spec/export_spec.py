"""ExportSpec: everything that one export depends on, validated once and then frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from exporter.spec.checks import check_batch, check_count, check_engine, check_opset, check_seconds
from exporter.spec.choices import (
    BF16_OPSET,
    DEFAULT_OPSET,
    ENGINES,
    EXPLICIT_TARGETS,
    LOWER_PRECISIONS,
    MODEL_NAMES,
    OUTPUT_WORDS,
    PRECISIONS,
    REWRITE_NAMES,
    RUNTIMES,
    TARGETS,
)
from exporter.spec.clip import check_clip
from exporter.spec.option import (
    BatchProfile,
    Choices,
    check_choices,
    check_precision,
    document,
    option,
    options_of,
)
from exporter.spec.types import as_declared, types_of
from model.config import MECHANISM_NAMES, SCHEME_NAMES, SEMANTICS
from model.task import TASK_NAMES


@document
@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """What to export and how; `None` leaves the value to the checkpoint, or to the default.

    Every option is declared here and nowhere else: command line, arguments of a model and metadata
    of a graph follow. The texts are those of the command line, in the order of its help. In Python,
    `res` is `(height, width)`, `config` is a mapping, and several values are a tuple.

    Raises:
        UsageError: if a value has another type or is not valid, or two values do not go together.
    """

    model: str | None = option(
        None,
        "Family of the checkpoint (told by its keys), or of a fresh model: fast_timesformer\n"
        "(default), timesformer_pytorch, facebookresearch, huggingface, mmaction2,\n"
        "frozen_in_time, or a preset: TimeSformer, TimeSformer-HR, TimeSformer-L.",
        choices=Choices("model", MODEL_NAMES),
        graph=1,
    )
    attn: str | None = option(
        None,
        "Attention: fastformer (default), performer or regular.",
        choices=Choices("attention mechanism", MECHANISM_NAMES),
        model=True,
        graph=2,
    )
    res: tuple[int, int] | None = option(None, "Height and width: 512, or 224x384.", graph=4)
    scheme: str | None = option(
        None,
        "Which tokens attend together: space, joint, divided (default), local-global, axial.",
        choices=Choices("attention scheme", SCHEME_NAMES),
        model=True,
        graph=3,
    )
    frames: int | None = option(None, "Frames of a clip (default 5).", model=True, graph=5)
    channels: int | None = option(None, "Channels of a frame (default 3).", model=True, graph=6)
    batch: int | None = option(None, "Clips per run (default 1).", graph=14)
    num_classes: int | None = option(None, "Classes (default 2).", model=True, graph=7)
    task: str | None = option(
        None,
        "What the logits mean: single-label (softmax), multi-label (sigmoid) or regression\n"
        "(values). Default: as the checkpoint tells; else a value if there is one output.",
        choices=Choices("task", TASK_NAMES),
    )
    dim: int | None = option(None, "Token width (default 128).", model=True, graph=8)
    depth: int | None = option(None, "Blocks (default 12).", model=True, graph=9)
    heads: int | None = option(None, "Heads (default dim / dim-head).", model=True, graph=10)
    dim_head: int | None = option(None, "Width of a head (default 64).", model=True, graph=11)
    patch_size: int | None = option(None, "Side of a patch (default 16).", model=True, graph=12)
    checkpoint: Path | None = option(
        None, "A trained model: a file, a Hugging Face directory or hub name[@revision].", path=True
    )
    weights: str | None = option(
        None, "Weights of a file that holds several: plain (default), ema, or their path in it."
    )
    config: Mapping[str, Any] = option(
        {}, "JSON file (or text) with what the checkpoint does not tell.", whole=True
    )
    semantics: str | None = option(
        None,
        "paper or upstream (default for checkpoints of the published package).",
        choices=Choices("semantics", SEMANTICS),
        model=True,
        graph=13,
    )
    video: tuple[Path, ...] = option((), "A clip to prove the export on.", path=True, whole=True)
    sampling: str | None = option(
        None,
        "Frames of a clip: uniform (segments of the whole file), or dense:RATE@FPS, as\n"
        "dense:32@30. Default: as the checkpoint tells; otherwise uniform, and the\n"
        "report says so.",
    )
    views: str | None = option(
        None, "Views of a file whose answers are averaged: CLIPSxCROPS, as 1x3 (default 1x1)."
    )
    no_store_clips: bool = option(
        False,
        "Keep the hashes of the clips in reference.npz, not their pixels: verify then needs\n"
        "the clips again.",
    )
    mask: bool = option(
        False,
        "Give the graph a second input, the frames to look at (timesformer_pytorch).",
        graph=16,
    )
    embed_preprocess: bool = option(
        False,
        "Let the graph scale and normalise: it takes pixels, uint8 frames that are\n"
        "sampled, resized and cropped.",
        graph=17,
    )
    outputs: tuple[str, ...] = option(
        (),
        "What the graph gives: logits (default), features (the default without a\n"
        "classifier), tokens, hidden-states, attentions; several with commas.",
        choices=Choices("output", OUTPUT_WORDS),
        whole=True,
    )
    eval: str | None = option(
        None,
        "Measure accuracy on labelled clips: motion (the built-in task), a folder\n"
        "class/clip.mp4, or a list with lines `path label`.",
        path=True,
        whole=True,
    )
    rewrite: str = option(
        "all",
        "Lay the model out for the runtimes (all, default), or leave it as it is (none).",
        choices=Choices("rewrites", ("all", "none")),
        graph=20,
    )
    no_rewrite: tuple[str, ...] = option(
        (),
        "A rewrite to leave out.",
        choices=Choices("rewrite", REWRITE_NAMES),
        graph=21,
        whole=True,
    )
    optimize_for: str = option(
        "onnxruntime",
        "Lay model.onnx out for onnxruntime on a CPU (default), openvino or tensorrt.",
        choices=Choices("runtime", RUNTIMES),
        graph=22,
    )
    precision: str = option(
        "fp32",
        "Precision of the graph: fp32 (default), fp16, bf16 or int8.",
        choices=Choices("precision", PRECISIONS),
        graph=18,
    )
    keep_fp32: tuple[str, ...] = option(
        (),
        "What stays in float32 at a lower precision: a regular expression over module\n"
        "paths, as blocks.3.attn_t.",
        precisions=LOWER_PRECISIONS,
        graph=19,
        whole=True,
    )
    calibration: tuple[Path, ...] = option(
        (),
        "Clip, or folder of clips, whose activations scale an int8 graph (default: a\n"
        "fixed synthetic set).",
        precisions=("int8",),
        path=True,
        whole=True,
    )
    dynamic_batch: BatchProfile | None = option(None, "Let the batch vary: MIN:OPT:MAX.", graph=15)
    opset: int | None = option(None, "ONNX opset (default 20; 22 for bf16).", graph=23)
    runtimes: tuple[str, ...] = option(
        (),
        "Runtimes to make a graph for, as onnxruntime,openvino,tensorrt (default: onnxruntime,\n"
        "openvino where it runs, tensorrt where an engine is built). model.onnx is always made.",
        flag="for",
        choices=Choices("runtime", RUNTIMES),
        whole=True,
    )
    engine: str = option(
        "auto",
        "TensorRT engine: auto, rtx, tensorrt or none.",
        choices=Choices("engine", ENGINES),
    )
    targets: tuple[str, ...] = option(
        (),
        "GPU architectures of the engine, as sm86,sm89.",
        flag="target",
        choices=Choices("engine target", TARGETS),
        whole=True,
    )
    allow_ill_conditioned: bool = option(False, "Exit 0 for an ill-conditioned model too.")
    threads: int | None = option(None, "Threads on the CPU.")
    bench_seconds: float = option(10.0, "Time for measuring latency.")
    seed: int = option(0, "Seed of a fresh model.", graph=24)

    def __post_init__(self) -> None:
        for name, declared in types_of(ExportSpec).items():
            object.__setattr__(self, name, as_declared(name, getattr(self, name), declared))
        check_choices(self, OPTIONS)
        check_precision(self, OPTIONS, self.precision)
        check_opset(self.opset, self.precision)
        check_batch(self.batch, self.dynamic_batch, self.run_batch)
        check_count("--threads", self.threads)
        check_seconds("--bench-seconds", self.bench_seconds)
        if not -(2**63) <= self.seed < 2**64:
            raise UsageError("--seed", got=self.seed, expected="a number of 64 bits")
        check_engine(self.engine, self.wanted_engine, self.targets)
        check_clip(self.sampling, self.views)
        if self.eval and self.mask:
            why = "labelled clips come without masks"
            what = f"--eval does not go with --mask: {why}"
            raise UsageError(what, remedy="use only one of them")
        for name in ("config", "weights"):
            if getattr(self, name) and self.checkpoint is None:
                why = f"--{name} describes a checkpoint, and none is given"
                raise UsageError(why, remedy="add --checkpoint PATH")

    @property
    def graph_opset(self) -> int:
        """The opset of the graph: the given one, or the default of the precision."""
        return self.opset or (BF16_OPSET if self.precision == "bf16" else DEFAULT_OPSET)

    @property
    def wanted_engine(self) -> str:
        """The engine to build: `none` where `--for` leaves TensorRT out."""
        return self.engine if "tensorrt" in (self.runtimes or RUNTIMES) else "none"

    @property
    def engine_targets(self) -> tuple[str, ...]:
        """The GPU architectures of the engine; empty if the builder chooses them."""
        takes_targets = self.wanted_engine in ("auto", "rtx")
        return self.targets or (takes_targets and EXPLICIT_TARGETS.get(self.precision)) or ()

    @property
    def run_batch(self) -> int:
        """Clips per run: the batch of a static graph, and of the latency measurement."""
        return self.batch or (self.dynamic_batch.opt if self.dynamic_batch else 1)

    def to_dict(self) -> dict[str, Any]:
        """Convert the spec to values that JSON can hold."""
        values = asdict(self)
        values["checkpoint"] = str(self.checkpoint) if self.checkpoint else None
        values["video"] = [str(path) for path in self.video]
        values["calibration"] = [str(path) for path in self.calibration]
        values["config"] = dict(self.config)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExportSpec:
        """Make a spec from the values of `to_dict`; entries that are not fields are ignored."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in OPTIONS
        }
        if known.get("dynamic_batch"):
            known["dynamic_batch"] = BatchProfile(**known["dynamic_batch"])
        return cls(**known)


OPTIONS = options_of(ExportSpec)
MODEL_ARGUMENTS = tuple(name for name, declared in OPTIONS.items() if declared.model)
# The options that decide the graph, in the fixed order of the metadata in `model.onnx`.
_PLACES = {name: declared.graph for name, declared in OPTIONS.items() if declared.graph}
OF_THE_GRAPH = tuple(sorted(_PLACES, key=_PLACES.__getitem__))
