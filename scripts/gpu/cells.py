"""The cells that `bench_gpu.py` measures: one export each, in the order of what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

# The order in a resolution: what takes longer comes later. The time limit cuts the end off.
MECHANISMS = ("fastformer", "regular", "performer")
PRECISIONS = ("fp16", "bf16", "fp32", "int8")


@dataclass(frozen=True)
class Sizes:
    """What all cells share."""

    frames: int = 5
    dim: int = 128
    depth: int = 12
    dim_head: int = 64
    resolutions: tuple[int, ...] = (224, 512)
    batches: tuple[int, ...] = (1, 16)


FULL = Sizes()
DRY = Sizes(frames=3, dim=32, depth=1, dim_head=16, resolutions=(32,), batches=(1, 2))


@dataclass(frozen=True)
class Cell:
    """One export: every batch is timed on the same engine."""

    mechanism: str
    resolution: int
    precision: str

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"{self.mechanism}-{self.resolution}-{self.precision}"

    def flags(self, sizes: Sizes, out: Path) -> list[str]:
        """The arguments of `tsformer export` for this cell."""
        most = max(sizes.batches)
        given = {
            "attn": self.mechanism,
            "res": self.resolution,
            "precision": self.precision,
            "frames": sizes.frames,
            "dim": sizes.dim,
            "depth": sizes.depth,
            "dim-head": sizes.dim_head,
            "dynamic-batch": f"{min(sizes.batches)}:{most}:{most}",
            "engine": "none",  # it is built on the GPU, from the graph that `for` asks for
            "for": "onnxruntime,tensorrt",
            "bench-seconds": 0,
            "output": out,
        }
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def cells(
    sizes: Sizes, mechanisms: Iterable[str] = MECHANISMS, precisions: Iterable[str] = PRECISIONS
) -> Sequence[Cell]:
    """List the cells, the cheapest first."""
    ordered = (
        [m for m in MECHANISMS if m in set(mechanisms)],
        [p for p in PRECISIONS if p in set(precisions)],
    )
    return [
        Cell(mechanism, resolution, precision)
        for resolution in sorted(sizes.resolutions)
        for precision, mechanism in product(ordered[1], ordered[0])
    ]
