"""ExportSpec: everything one export depends on, frozen and validated once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from model.config import (
    FAMILY_NAMES,
    MECHANISM_NAMES,
    PRESETS,
    SCHEME_NAMES,
    SEMANTICS,
    ConfigError,
    check_choice,
)

MODEL_NAMES = (*FAMILY_NAMES, *PRESETS)
ENGINES: tuple[str, ...] = ("auto", "rtx", "tensorrt", "none")
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8")
TARGETS: tuple[str, ...] = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
REWRITE_NAMES: tuple[str, ...] = (
    *("class_token", "fold_norm", "fold_fc", "frame_weights", "heads_first", "few_features"),
    *("pooled_rotation", "fold_global_key", "bias_apart", "cut_attention", "cut_feed_forward"),
    "fold_pixels",
)
DEFAULT_FAMILY = "fast_timesformer"
# A fresh model, where the user says nothing else: that of the published README.
FRESH = {
    "frames": 5,
    "channels": 3,
    "height": 224,
    "width": 224,
    "num_classes": 2,
    "dim": 128,
}
OPSETS = range(18, 24)
DEFAULT_OPSET = 20  # the first with Gelu; every TensorRT from 10 on parses it
BF16_OPSET = 22  # the first whose Conv takes bfloat16
# Those the builder's own choice would not do for: it hides what a dtype needs of the GPU.
_AMPERE_ON = ("sm80", "sm86", "sm89", "sm120", "sm121")
EXPLICIT_TARGETS = {"bf16": _AMPERE_ON, "int8": _AMPERE_ON}


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes an engine accepts (`min` to `max`) and the one it is tuned for (`opt`)."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(
                "the dynamic batch is not in order",
                got=f"{self.min}:{self.opt}:{self.max}",
                expected="1 <= MIN <= OPT <= MAX",
            )

    @classmethod
    def parse(cls, text: str) -> BatchProfile:
        """Read `MIN:OPT:MAX`."""
        if not re.fullmatch(r"\d+:\d+:\d+", text):
            raise UsageError(
                "--dynamic-batch", got=repr(text), expected="MIN:OPT:MAX, as in 1:4:16"
            )
        return cls(*map(int, text.split(":")))


@dataclass(frozen=True)
class ExportSpec:
    """What to export and how; `None` means what the checkpoint tells, or the default.

    Args:
        model: Family of the checkpoint (told by its keys unless given), or of a fresh model
            (`fast_timesformer` unless given), or a preset: `TimeSformer`, `TimeSformer-HR`,
            `TimeSformer-L`.
        attn: Attention mechanism: `regular`, `performer` or `fastformer` (default).
        res: Height and width in pixels (default 224 x 224).
        scheme: Which tokens attend together: `space`, `joint`, `divided` (default),
            `local-global` or `axial`.
        frames: Frames per clip (default 5).
        channels: Channels per frame (default 3).
        num_classes: Logits per clip (default 2).
        dim: Token width (default 128).
        depth: Transformer blocks (default 12).
        heads: Attention heads (default `dim // dim_head`).
        dim_head: Width of one head (default 64).
        patch_size: Side of a square patch in pixels (default 16).
        semantics: `paper` (default for fresh models) or `upstream` (default for checkpoints of
            the published package).
        checkpoint: A trained model; without it a fresh one is made from `seed`.
        config: Constructor arguments of the checkpoint's family that its file does not tell.
        batch: Clips per run of the graph (default 1, or OPT of a dynamic batch).
        dynamic_batch: Let the batch vary within this profile.
        precision: Precision of the graph: `fp32`, `fp16`, `bf16` or `int8`.
        keep_fp32: Regular expressions over module paths, as `blocks.3.attn_t`: what stays in
            float32 at a lower precision.
        calibration: Clips, or folders of them, whose activations scale an int8 graph; a fixed
            synthetic set unless given.
        opset: ONNX opset (default 20; 22 for bf16).
        engine: `auto`, `rtx`, `tensorrt` or `none`.
        targets: GPU architectures of the engine, as `sm86`; empty for the builder's own choice.
        video: Clips to prove the export on, beside the synthetic inputs.
        mask: Give the graph a second input `mask`, bool `(b, f)`: the frames to look at.
        embed_preprocess: Let the graph scale, normalise and lay out clips: it takes `video` as
            uint8 `(b, f, h, w, c)`, sampled, resized and cropped.
        rewrite: `all` the rewrites of `exporter.rewrite` that fit the model, or `none`.
        no_rewrite: Rewrites to leave out, by name.
        optimize_for: `onnxruntime` on a CPU, or `tensorrt`, without what suits the caches and
            threads of a CPU.
        eval: Measure accuracy on labelled clips: `motion`, the built-in task, or a folder
            `class/clip.mp4`.
        seed: Seed of a fresh model's weights.
        allow_ill_conditioned: Accept a model that is no function at this precision.
        threads: Threads of every CPU runtime (default: PyTorch's choice).
        bench_seconds: Time for the latency stage after its least number of runs.

    Raises:
        UsageError: if a value, or two together, cannot be exported.
    """

    model: str | None = None
    attn: str | None = None
    res: tuple[int, int] | None = None
    scheme: str | None = None
    frames: int | None = None
    channels: int | None = None
    num_classes: int | None = None
    dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    dim_head: int | None = None
    patch_size: int | None = None
    semantics: str | None = None
    checkpoint: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    dynamic_batch: BatchProfile | None = None
    precision: str = "fp32"
    keep_fp32: tuple[str, ...] = ()
    calibration: tuple[Path, ...] = ()
    opset: int | None = None
    engine: str = "auto"
    targets: tuple[str, ...] = ()
    video: tuple[Path, ...] = ()
    mask: bool = False
    embed_preprocess: bool = False
    rewrite: str = "all"
    no_rewrite: tuple[str, ...] = ()
    optimize_for: str = "onnxruntime"
    eval: str | None = None
    seed: int = 0
    allow_ill_conditioned: bool = False
    threads: int | None = None
    bench_seconds: float = 20.0

    def __post_init__(self) -> None:
        self._accept_plain_paths()
        self._check_choices()
        self._check_precision()
        self._check_batch()
        if self.threads is not None and self.threads < 1:
            raise UsageError("--threads", got=self.threads, expected="at least 1")
        if not 0 <= self.bench_seconds < math.inf:  # neither is NaN
            raise UsageError("--bench-seconds", got=self.bench_seconds, expected="at least 0")
        if not -(2**63) <= self.seed < 2**64:
            raise UsageError("--seed", got=self.seed, expected="a number of 64 bits")
        if self.targets and self.engine in ("none", "tensorrt"):
            raise UsageError(
                f"--target does not go with --engine {self.engine}",
                remedy="leave --target away, or choose --engine rtx",
            )
        if self.eval and self.mask:
            raise UsageError(
                "--eval does not go with --mask: labelled clips come without masks",
                remedy="leave one of them away",
            )
        if self.config and self.checkpoint is None:
            raise UsageError(
                "--config describes a checkpoint, and none is given", remedy="add --checkpoint PATH"
            )

    def _accept_plain_paths(self) -> None:
        """Take strings for paths, and one clip for several: the spec is written by hand too."""
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))
        for name in ("video", "calibration"):
            paths = getattr(self, name)
            paths = (paths,) if isinstance(paths, (str, Path)) else paths
            object.__setattr__(self, name, tuple(map(Path, paths)))
        if self.res is not None and not (isinstance(self.res, tuple) and len(self.res) == 2):
            raise UsageError("res", got=repr(self.res), expected="(height, width)")

    def _check_batch(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise UsageError("--batch", got=self.batch, expected="at least 1")
        profile = self.dynamic_batch
        if profile and not profile.min <= self.run_batch <= profile.max:
            raise UsageError(
                "--batch is outside --dynamic-batch",
                got=self.batch,
                expected=f"{profile.min} to {profile.max}",
            )

    def _check_precision(self) -> None:
        if self.keep_fp32 and self.precision == "fp32":
            raise UsageError(
                "--keep-fp32 does not go with --precision fp32",
                remedy="choose fp16, bf16 or int8",
            )
        if self.calibration and self.precision != "int8":
            raise UsageError(
                f"--calibration does not go with --precision {self.precision}",
                remedy="choose --precision int8",
            )
        least = BF16_OPSET if self.precision == "bf16" else OPSETS.start
        if self.opset is not None and not least <= self.opset < OPSETS.stop:
            raise UsageError("--opset", got=self.opset, expected=f"{least} to {OPSETS.stop - 1}")
        if "sm75" in self.targets:
            raise UsageError(
                "--target sm75 cannot be built: TensorRT-RTX has no fp32 matrix product for "
                "Turing, and every graph has one",
                remedy="leave sm75 away",
            )

    @property
    def graph_opset(self) -> int:
        """The opset of the graph: the one asked for, or the default of its precision."""
        return self.opset or (BF16_OPSET if self.precision == "bf16" else DEFAULT_OPSET)

    @property
    def engine_targets(self) -> tuple[str, ...]:
        """The architectures of an engine that takes targets; empty for the builder's choice."""
        takes_targets = self.engine in ("auto", "rtx")
        return self.targets or (takes_targets and EXPLICIT_TARGETS.get(self.precision)) or ()

    @property
    def run_batch(self) -> int:
        """Clips per run: what a static graph is fixed to, and what latency is measured at."""
        return self.batch or (self.dynamic_batch.opt if self.dynamic_batch else 1)

    def _check_choices(self) -> None:
        try:
            for what, value, options in (
                ("model", self.model, MODEL_NAMES),
                ("attention mechanism", self.attn, MECHANISM_NAMES),
                ("attention scheme", self.scheme, SCHEME_NAMES),
                ("semantics", self.semantics, SEMANTICS),
                ("precision", self.precision, PRECISIONS),
                ("engine", self.engine, ENGINES),
                ("rewrites", self.rewrite, ("all", "none")),
                ("runtime", self.optimize_for, ("onnxruntime", "tensorrt")),
            ):
                if value is not None:
                    check_choice(what, value, options)
            for name in self.no_rewrite:
                check_choice("rewrite", name, REWRITE_NAMES)
            for target in self.targets:
                check_choice("engine target", target, TARGETS)
        except ConfigError as error:
            raise UsageError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Give the spec as JSON-ready values."""
        values = asdict(self)
        values["checkpoint"] = str(self.checkpoint) if self.checkpoint else None
        values["video"] = [str(path) for path in self.video]
        values["calibration"] = [str(path) for path in self.calibration]
        values["config"] = dict(self.config)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExportSpec:
        """Make the spec of `to_dict` again; entries that are not its fields are left aside."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        profile = known.get("dynamic_batch")
        return cls(
            **known
            | {
                "res": tuple(known["res"]) if known.get("res") else None,
                "checkpoint": Path(known["checkpoint"]) if known.get("checkpoint") else None,
                "dynamic_batch": BatchProfile(**profile) if profile else None,
                "targets": tuple(known.get("targets", ())),
                "keep_fp32": tuple(known.get("keep_fp32", ())),
                "no_rewrite": tuple(known.get("no_rewrite", ())),
                "video": tuple(map(Path, known.get("video", ()))),
                "calibration": tuple(map(Path, known.get("calibration", ()))),
            }
        )
