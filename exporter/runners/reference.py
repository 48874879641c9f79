"""The ONNX reference evaluator: a graph of lower precision, really computed in it.

ONNX Runtime's CPU provider computes fp16 graphs in float32 between casts, and has no bf16, so it
does not show what a GPU would round. Here every operator rounds its output to its own type. Matrix
products multiply exactly and add in float32 before they round, as the tensor cores of a GPU do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from exporter.errors import RuntimeFailure
from exporter.runners.base import Arrays, Closing, check_inputs

# What it is for: no other runtime of a CPU computes in these.
EVALUATED = ("fp16", "bf16")


class MatMul(OpRun):
    """`a @ b`, added in float32 and rounded once: `(..., n, k), (..., k, m) -> (..., n, m)`."""

    op_domain = ""

    def _run(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        if a.dtype == np.float32:
            return (a @ b,)
        return ((a.astype(np.float32) @ b.astype(np.float32)).astype(a.dtype),)


class ReferenceRunner(Closing):
    """One graph in the ONNX reference evaluator, on the CPU.

    Args:
        graph: The ONNX file, or a model in memory.
        precision: What the graph computes in.
        every_value: Give every value of the graph by its name, not the outputs alone.

    Raises:
        RuntimeFailure: if the evaluator lacks an operator of the graph.
    """

    name = "onnx-reference"
    device = "cpu"
    threads = 1
    transfers_included = True

    def __init__(
        self, graph: Path | onnx.ModelProto, precision: str, *, every_value: bool = False
    ) -> None:
        try:
            model = onnx.load(graph) if isinstance(graph, Path) else graph
            self._evaluator = ReferenceEvaluator(model, new_ops=[MatMul])
        except Exception as error:  # it raises unrelated classes
            raise RuntimeFailure(
                f"the ONNX reference evaluator does not load it: {error}"
            ) from error
        self.precision = precision
        self.input_shapes: Mapping[str, tuple[int | None, ...]] = {
            value.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in value.type.tensor_type.shape.dim
            )
            for value in model.graph.input
        }
        self._every_value = every_value

    def close(self) -> None:  # noqa: D102
        del self._evaluator

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Give `logits` `(b, classes)` for `video` `(b, f, c, h, w)`, or every value by name."""
        check_inputs(self, inputs)
        settings: dict[str, Any] = {"intermediate": True} if self._every_value else {}
        try:
            with np.errstate(all="ignore"):  # overflow is what the caller looks for
                values = self._evaluator.run(None, dict(inputs), **settings)
        except Exception as error:  # as above
            raise RuntimeFailure(f"the ONNX reference evaluator failed: {error}") from error
        if isinstance(values, dict):
            return values
        return dict(zip(map(str, self._evaluator.output_names), values, strict=True))
