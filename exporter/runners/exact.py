"""A graph of float64 in the ONNX reference evaluator: no step rounds to less.

Operators that the evaluator computes in float32 are written here in the type of their input. A
value is dropped after its last reader, so that memory holds a large model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from exporter.runners.base import Arrays
from exporter.runners.erf import erf
from exporter.runners.reference import Evaluated

_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805


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


class Selu(OpRun):
    """The scaled exponential linear unit (Klambauer et al. 2017, arXiv:1706.02515, equation 2).

    A node holds its two constants in float32. Where they are those of the paper, they are exact.
    """

    op_domain = ""

    def _run(
        self, x: np.ndarray, alpha: float = _SELU_ALPHA, gamma: float = _SELU_GAMMA
    ) -> tuple[np.ndarray]:
        a, g = (
            exact if np.float32(exact) == np.float32(given) else given
            for exact, given in ((_SELU_ALPHA, alpha), (_SELU_GAMMA, gamma))
        )
        return (g * np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),)


class Erf(OpRun):
    """The error function."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (erf(x),)


_OPERATORS: list[type[OpRun]] = [LayerNormalization, MatMul, Gelu, Selu, Erf]


class ExactRunner(Evaluated):
    """One graph in float64.

    Args:
        graph: A graph that `raise_graph` made.

    Raises:
        RuntimeFailure: if the evaluator lacks an operator of the graph.
    """

    def __init__(self, graph: onnx.ModelProto) -> None:
        super().__init__(graph, "fp64", _OPERATORS)
        self._outputs = [value.name for value in graph.graph.output]
        self._last = {name: i for i, node in enumerate(graph.graph.node) for name in node.input}

    def _compute(self, inputs: Arrays) -> dict[str, np.ndarray]:
        values: dict[str, Any] = {
            name: array.astype(np.float64) if array.dtype.kind == "f" else array
            for name, array in inputs.items()
        }
        values |= {"": None, **self._evaluator.rt_inits_}
        for i, node in enumerate(self._evaluator.rt_nodes_):
            taken = [values[name] for name in node.input]
            values.update(zip(node.output, node.run(*taken), strict=False))
            for name in {*node.input} - {"", *self._outputs}:
                if self._last[name] == i:
                    del values[name]
        return {name: values[name] for name in self._outputs}
