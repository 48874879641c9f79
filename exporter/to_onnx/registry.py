"""Read the functions that translate the operators of torch once in a process.

About 500 functions of onnxscript translate these operators. At each trace torch asks each of them
for its domain, onnxscript parses the source of the function to answer, and torch puts all of them
into a new registry. An export traces several times: each graph, and each kind of block.
"""

from __future__ import annotations

from copy import copy
from functools import cache, cached_property
from typing import Any

from onnxscript import values


def read_functions_once() -> None:
    """Let onnxscript keep what it parsed, and torch its registry, where their classes allow it."""
    kind: Any = getattr(values, "TracedOnnxFunction", object)
    parse = vars(kind).get("function_ir")
    if isinstance(parse, property) and parse.fget is not None:
        kept = cached_property(parse.fget)
        kept.__set_name__(kind, "function_ir")
        kind.function_ir = kept
    _keep_registries()


@cache  # do it once
def _keep_registries() -> None:
    try:
        from torch.onnx._internal.exporter import _registration
    except ImportError:
        return
    registry: Any = getattr(_registration, "ONNXRegistry", object)
    fill = vars(registry).get("from_torchlib")
    if not isinstance(fill, classmethod):
        return
    filled = cache(fill.__func__)

    def give(kind: type, *opset: int, **named: int) -> Any:  # noqa: ANN401  # an ONNXRegistry
        """Return a registry that its caller may change."""
        made = copy(filled(kind, *opset, **named))
        made.functions = {target: [*ways] for target, ways in made.functions.items()}
        return made

    registry.from_torchlib = classmethod(give)
