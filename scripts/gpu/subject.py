"""What all runtimes of `bench_gpu.py` are compared on: a model, its clips and its precision."""

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
        for_a_cpu = [name for name, rule in REWRITES.items() if "tensorrt" not in rule.targets]
        rewritten = rewrite(self.model("paper"), skip=for_a_cpu)
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
