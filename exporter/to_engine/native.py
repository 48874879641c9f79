"""Load TensorRT's Python package and make a logger for it.

The build worker and the runner share this file. It has no import statement for TensorRT: the name
of the package is an argument, because `tensorrt` and `tensorrt_rtx` have the same interface.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")  # in the order of ILogger

Native = Any  # an object or module of TensorRT, which has no usable type stubs


class BuildFailure(Exception):  # noqa: N818  # the name follows exporter.errors.RuntimeFailure
    """A build that cannot succeed. `facts` are the arguments of `TsformerError`."""

    def __init__(self, what: str, **facts: object) -> None:
        super().__init__(what)
        self.facts = {"what": what, **{name: str(fact) for name, fact in facts.items()}}


def load_tensorrt(module: str) -> Native:
    """Import the TensorRT package of one flavour.

    Raises:
        BuildFailure: if the package is not installed, or a native library is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        what = "is not installed" if error.name == module else f"needs {error.name!r}"
        raise BuildFailure(f"{module} {what}") from error
    except Exception as error:  # ImportError or OSError of a library; others are not documented
        raise BuildFailure(
            f"{module} cannot be imported", got=f"{type(error).__name__}: {error}"
        ) from error


def make_logger(
    trt: Native,
    sink: Callable[[str, str], None],
    on_detail: Callable[[str], None] = lambda _text: None,
) -> Native:
    """Return a TensorRT logger.

    It calls `sink(severity, text)` for INFO and above, and `on_detail(text)` for the rest.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 needs this explicit call instead of super()

        def log(self, severity: Native, msg: str) -> None:
            if int(severity) <= SEVERITIES.index("INFO"):
                sink(SEVERITIES[int(severity)], " ".join(msg.split()))
            else:
                on_detail(msg)

    return Logger()
