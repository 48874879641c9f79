"""A lint rule: a function from a graph to the places where it fires, with its metadata beside it.

The docstring of the function is the page of the rule in the reference: the first line says what it
finds, the rest why that hurts and what to do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from exporter.graph.view import GraphView
from exporter.lint.location import Spot

Severity = Literal["error", "warning"]
Find = Callable[[GraphView], Iterator[Spot]]

ONNX_RUNTIME, TENSORRT = "onnxruntime", "tensorrt"
RUNTIME_NAMES = {ONNX_RUNTIME: "ONNX Runtime", TENSORRT: "TensorRT"}
RUNTIMES = tuple(RUNTIME_NAMES)
REGISTERED: dict[str, Rule] = {}  # in the order of definition; `exporter.lint.RULES` orders them


@dataclass(frozen=True)
class Rule:
    """One rule: how severe it is, for which runtimes, and what to do.

    An `error` is what a runtime does not load or build; a `warning` is slow or inexact. The remedy
    is an imperative without a full stop.
    """

    name: str
    find: Find
    severity: Severity
    runtimes: tuple[str, ...]
    remedy: str

    @property
    def where(self) -> str:
        """The runtimes in words."""
        return " and ".join(RUNTIME_NAMES[name] for name in self.runtimes)

    @property
    def summary(self) -> str:
        """What the rule finds: the first line of the docstring of its function."""
        return self._page()[0]

    @property
    def explanation(self) -> str:
        """Why it hurts and what to do, in Markdown: the rest of that docstring."""
        return self._page()[1]

    def _page(self) -> tuple[str, str]:
        summary, _, explanation = (inspect.getdoc(self.find) or "").partition("\n\n")
        return summary, explanation


def rule(
    name: str, *, severity: Severity, runtimes: Sequence[str] = RUNTIMES, remedy: str
) -> Callable[[Find], Find]:
    """Register a function as the rule of this name; a name can be used once."""

    def register(find: Find) -> Find:
        assert name not in REGISTERED, f"two lint rules are called {name}"
        REGISTERED[name] = Rule(name, find, severity, tuple(runtimes), remedy)
        return find

    return register
