"""The ONNX reference evaluator: it computes a graph of lower precision in that precision.

The CPU provider of ONNX Runtime computes fp16 graphs in float32 between casts and has no bf16, so
it does not show the rounding of a GPU. Here every operator rounds its output to its own type.
Matrix products multiply exactly and add in float32 before they round, as the tensor cores of a GPU
do.
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
from exporter.runners.base import EVALUATOR, Arrays, Closing, check_inputs


class MatMul(OpRun):
    """Computes `a @ b` in float32 and rounds once: `(..., n, k), (..., k, m) -> (..., n, m)`."""

    op_domain = ""

    def _run(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        if a.dtype == np.float32:
            return (a @ b,)
        return ((a.astype(np.float32) @ b.astype(np.float32)).astype(a.dtype),)


class Evaluated(Closing):
    """A graph in the ONNX reference evaluator, on the CPU; a subclass computes its values.

    Args:
        graph: The ONNX file, or a model in memory.
        precision: The precision of the graph.
        operators: Operators that take the place of those of the evaluator.

    Raises:
        RuntimeFailure: if the evaluator lacks an operator of the graph.
    """

    name = EVALUATOR
    device = "cpu"
    threads = 1
    transfers_included = True

    def __init__(
        self, graph: Path | onnx.ModelProto, precision: str, operators: list[type[OpRun]]
    ) -> None:
        try:
            model = onnx.load(graph) if isinstance(graph, Path) else graph
            self._evaluator = ReferenceEvaluator(model, new_ops=operators)
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

    def close(self) -> None:  # noqa: D102
        del self._evaluator

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute `logits` `(b, classes)` of `video` `(b, f, c, h, w)`, or every value."""
        check_inputs(self, inputs)
        try:
            with np.errstate(all="ignore"):  # an overflow is a result: the judge looks for it
                return self._compute(inputs)
        except Exception as error:  # it raises unrelated classes
            raise RuntimeFailure(f"the ONNX reference evaluator failed: {error}") from error

    def _compute(self, inputs: Arrays) -> dict[str, np.ndarray]:
        raise NotImplementedError


class ReferenceRunner(Evaluated):
    """One graph, in its own precision.

    Args:
        graph: The ONNX file, or a model in memory.
        precision: The precision of the graph.
        every_value: Whether to give every value of the graph by its name, or only the outputs.

    Raises:
        RuntimeFailure: if the evaluator lacks an operator of the graph.
    """

    def __init__(
        self, graph: Path | onnx.ModelProto, precision: str, *, every_value: bool = False
    ) -> None:
        super().__init__(graph, precision, [MatMul])
        self._every_value = every_value

    def _compute(self, inputs: Arrays) -> dict[str, np.ndarray]:
        settings: dict[str, Any] = {"intermediate": True} if self._every_value else {}
        values = self._evaluator.run(None, dict(inputs), **settings)
        if isinstance(values, dict):
            return values
        return dict(zip(map(str, self._evaluator.output_names), values, strict=True))
