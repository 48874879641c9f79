"""The subject that all runtimes of `bench_gpu.py` run: a model, its clips and its precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from exporter.precision import in_precision
from exporter.rewrite import REWRITES, rewrite
from exporter.spec import BF16_OPSET, DEFAULT_OPSET
from exporter.to_onnx.export import export_onnx
from model import FastTimeSformer
from model.config import MechanismName, Semantics

MIN_ROUNDS = 5


@dataclass(frozen=True)
class Precision:
    """The type in which a model computes."""

    name: str  # a value of `tsformer export --precision`
    tf32: bool = False


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("fp32"),
    "tf32": Precision("fp32", tf32=True),
    "fp16": Precision("fp16"),
    "bf16": Precision("bf16"),
}


@dataclass(frozen=True)
class Case:
    """One case of the comparison. Every runtime runs it."""

    mechanism: MechanismName
    resolution: int
    batch: int
    precision: str


@dataclass(frozen=True)
class Sizes:
    """The settings that all cases share."""

    frames: int = 5
    dim: int = 128
    depth: int = 12
    dim_head: int = 64
    rounds: int = 50
    warmup_seconds: float = 0.2
    case_seconds: float = 10.0
    compiler: str = "inductor"


QUICK = Sizes(3, 32, 1, 16, MIN_ROUNDS, 0.0, 1.0, compiler="eager")  # "eager" generates no code


class Subject:
    """The model and the clips of one case, with its typed model, its graph and its truth."""

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
        """Make the float32 model on the CPU; a mechanism and a resolution give the same weights."""
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
        """Make the eager model in the precision of the case, on the device."""
        return in_precision(self.model(semantics), self.precision.name).to(self.device)

    @cached_property
    def onnx_path(self) -> Path:
        """Export the graph of `tsformer export` in the precision of the case."""
        path = self.folder / "model.onnx"
        for_a_cpu = [name for name, rule in REWRITES.items() if "tensorrt" not in rule.targets]
        rewritten = rewrite(self.model("paper"), skip=for_a_cpu)
        model = in_precision(rewritten, self.precision.name)
        opset = BF16_OPSET if self.precision.name == "bf16" else DEFAULT_OPSET
        export_onnx(model, {"video": self.host_video}, path, opset=opset)
        return path

    def truth(self, semantics: Semantics) -> Tensor:
        """Compute the float64 logits clip by clip; a whole batch may not fit the memory."""
        if semantics not in self._truths:
            model = self.model(semantics).double().to(self.device)
            clips = [model(clip[None].double()) for clip in self.video]
            self._truths[semantics] = torch.cat(clips)
        return self._truths[semantics]
