"""Export, prove and time video transformers: `export(ExportSpec(attn="fastformer"))`."""

import os
from typing import TYPE_CHECKING, Any

from exporter.errors.install import is_ours, missing_package, refuse_shadow

refuse_shadow()  # must run before the first import of `model`

from exporter.errors import TsformerError  # noqa: E402
from exporter.spec import BatchProfile, ExportSpec  # noqa: E402

# ONNX Runtime would send usage data from now on, and leave a file in TMPDIR.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from exporter.pipeline import ExportResult, export

__all__ = ["BatchProfile", "ExportResult", "ExportSpec", "TsformerError", "export"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the pipeline, and so torch, at the first use of it."""
    if name not in ("ExportResult", "export"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from exporter import pipeline
    except ModuleNotFoundError as error:
        if is_ours(error.name):
            raise
        raise missing_package(str(error.name), f"exporter.{name}") from error
    return getattr(pipeline, name)
