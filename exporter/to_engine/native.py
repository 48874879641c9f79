"""TensorRT's Python package as this project uses it: loaded, and with a logger of ours.

The build worker and the runner share it. It imports no TensorRT of its own: the flavour is an
argument, because `tensorrt` and `tensorrt_rtx` have the same interface.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")  # ILogger's own order

Native = Any  # an object or module of TensorRT, which has no usable type stubs


class BuildFailure(Exception):  # noqa: N818  # named as exporter.errors.RuntimeFailure is
    """A build that cannot succeed; the facts are the arguments of `TsformerError`."""

    def __init__(self, what: str, **facts: object) -> None:
        super().__init__(what)
        self.facts = {"what": what, **{name: str(fact) for name, fact in facts.items()}}


def load_tensorrt(module: str) -> Native:
    """Import TensorRT under the name of one flavour.

    Raises:
        BuildFailure: if it is not installed, or its native libraries are not complete.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        what = "is not installed" if error.name == module else f"needs {error.name!r}"
        raise BuildFailure(f"{module} {what}") from error
    except Exception as error:  # ImportError or OSError of a library; what else, nobody documents
        raise BuildFailure(
            f"{module} cannot be imported", got=f"{type(error).__name__}: {error}"
        ) from error


def make_logger(trt: Native, sink: Callable[[str, str], None]) -> Native:
    """Give a TensorRT logger that calls `sink(severity, text)` for INFO and above."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 wants it named; super() is not enough

        def log(self, severity: Native, msg: str) -> None:
            if int(severity) <= SEVERITIES.index("INFO"):
                sink(SEVERITIES[int(severity)], " ".join(msg.split()))

    return Logger()
