"""Read the functions of onnxscript once in a process.

At each trace, torch asks for the domain of the about 500 functions that translate its operators.
onnxscript parses the source of every function to answer, each time. An export traces several times:
each graph, and each kind of block.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from onnxscript import values


def read_functions_once() -> None:
    """Let onnxscript keep what it parsed; do nothing if its class has no such property."""
    kind: Any = getattr(values, "TracedOnnxFunction", object)
    parse = vars(kind).get("function_ir")
    if isinstance(parse, property) and parse.fget is not None:
        kept = cached_property(parse.fget)
        kept.__set_name__(kind, "function_ir")
        kind.function_ir = kept
