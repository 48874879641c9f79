"""Export a model of your own: a small text classifier with the fast attention of this package.

    python examples/text_model.py build/text

`export_module` takes any `torch.nn.Module`. It writes the ONNX graph, proves it in ONNX Runtime
against float64, times it, and keeps the proof for other machines.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from exporter import ExportSpec, export_module
from model import FastAttention

VOCABULARY, LENGTH, DIM = 200, 16, 64


class TextClassifier(nn.Module):
    """Classifies token ids `(b, n)`: embedding, two blocks of additive attention, mean, classes."""

    def __init__(self, classes: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, DIM)
        self.positions = nn.Parameter(torch.randn(LENGTH, DIM) / DIM)
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(depth))
        self.attentions = nn.ModuleList(FastAttention(DIM, dim_head=16) for _ in range(depth))
        self.head = nn.Linear(DIM, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """`(b, n) -> (b, classes)` logits."""
        x = self.embed(ids) + self.positions
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return self.head(x.mean(1))


def main(out: str) -> int:
    """Export the model; the exit code is 0 if it is proven."""
    torch.manual_seed(0)
    ids = torch.randint(VOCABULARY, (8, LENGTH))
    spec = ExportSpec(engine="none", bench_seconds=1.0)
    result = export_module(
        TextClassifier(), {"ids": ids}, out, spec, outputs=["logits"], force=True
    )
    row = result.report.parity[0]
    print(f"{result.verdict}: {row.output} error {row.rel_l2:.1e}, allowed {row.tolerance:.1e}")
    return 0 if result.verdict == "pass" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "build/text"))
