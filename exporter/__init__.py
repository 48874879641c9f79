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
    from exporter.pipeline.module import export_module

__all__ = [
    "BatchProfile",
    "ExportResult",
    "ExportSpec",
    "TsformerError",
    "export",
    "export_module",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the pipeline, and so torch, at the first use of it."""
    if name not in ("ExportResult", "export", "export_module"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from exporter import pipeline
        from exporter.pipeline import module
    except ModuleNotFoundError as error:
        if is_ours(error.name):
            raise
        raise missing_package(str(error.name), f"exporter.{name}") from error
    return getattr(module if name == "export_module" else pipeline, name)
