"""Read the functions of onnxscript once in a process.

About 500 functions of onnxscript translate the operators of torch. At each trace torch asks each of
them for its domain, and onnxscript parses the source of the function to answer. An export traces
several times: each graph, and each kind of block.
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
