"""A graph of float64 in the ONNX reference evaluator: no step rounds to less.

Operators that the evaluator computes in float32 are written here in the type of their input. A
value is dropped after its last reader, so that memory holds a large model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from exporter.errors import RuntimeFailure
from exporter.runners.base import EVALUATOR, Arrays, Closing, check_inputs
from exporter.runners.erf import erf


class LayerNormalization(OpRun):
    """Normalises the last axes from `axis` on."""

    op_domain = ""

    def _run(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray | None = None,
        axis: int = -1,
        epsilon: float = 1e-5,
        stash_type: int = 1,  # of the operator
    ) -> tuple[np.ndarray]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        centred = x - x.mean(axes, keepdims=True)
        variance = np.square(centred).mean(axes, keepdims=True)
        normal = centred / np.sqrt(variance + epsilon) * scale
        return (normal if bias is None else normal + bias,)


class MatMul(OpRun):
    """Multiplies by a matrix in one product, where the evaluator makes one for each group."""

    op_domain = ""

    def _run(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        if b.ndim != 2 or a.ndim < 3:
            return (a @ b,)
        rows = a.reshape(-1, a.shape[-1]) @ b
        return (rows.reshape(*a.shape[:-1], b.shape[-1]),)


class Gelu(OpRun):
    """Multiplies by the normal distribution's cumulative probability, or by its approximation."""

    op_domain = ""

    def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
        if approximate == "tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return (0.5 * x * (1 + np.tanh(inner)),)
        return (0.5 * x * (1 + erf(x / math.sqrt(2))),)


class Erf(OpRun):
    """The error function."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (erf(x),)


_OPERATORS: list[type[OpRun]] = [LayerNormalization, MatMul, Gelu, Erf]


class ExactRunner(Closing):
    """One graph in float64, on the CPU.

    Args:
        graph: A graph that `raise_graph` made.

    Raises:
        RuntimeFailure: if the evaluator lacks an operator of the graph.
    """

    name = EVALUATOR
    device = "cpu"
    precision = "fp64"
    threads = 1
    transfers_included = True

    def __init__(self, graph: onnx.ModelProto) -> None:
        try:
            self._evaluator = ReferenceEvaluator(graph, new_ops=_OPERATORS)
        except Exception as error:  # it raises unrelated classes
            raise RuntimeFailure(
                f"the ONNX reference evaluator does not load it: {error}"
            ) from error
        self.input_shapes: Mapping[str, tuple[int | None, ...]] = {
            value.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in value.type.tensor_type.shape.dim
            )
            for value in graph.graph.input
        }
        self._outputs = [value.name for value in graph.graph.output]
        self._last = {name: i for i, node in enumerate(graph.graph.node) for name in node.input}

    def close(self) -> None:  # noqa: D102
        del self._evaluator

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute `logits` `(b, classes)` in float64 of `video` `(b, f, c, h, w)`."""
        check_inputs(self, inputs)
        values: dict[str, Any] = {
            name: array.astype(np.float64) if array.dtype.kind == "f" else array
            for name, array in inputs.items()
        }
        values |= {"": None, **self._evaluator.rt_inits_}
        try:
            with np.errstate(all="ignore"):  # an overflow is a result: the judge looks for it
                for i, node in enumerate(self._evaluator.rt_nodes_):
                    taken = [values[name] for name in node.input]
                    values.update(zip(node.output, node.run(*taken), strict=False))
                    for name in {*node.input} - {"", *self._outputs}:
                        if self._last[name] == i:
                            del values[name]
        except Exception as error:  # it raises unrelated classes
            raise RuntimeFailure(f"the ONNX reference evaluator failed: {error}") from error
        return {name: values[name] for name in self._outputs}
