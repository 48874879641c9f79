"""Export, prove and time video transformers: `export(ExportSpec(attn="fastformer"))`."""

from typing import TYPE_CHECKING, Any

from exporter.errors import TsformerError
from exporter.spec import BatchProfile, ExportSpec

if TYPE_CHECKING:
    from exporter.pipeline import ExportResult, export

__all__ = ["BatchProfile", "ExportResult", "ExportSpec", "TsformerError", "export"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Load the pipeline, and torch with it, only when it is used."""
    if name not in ("ExportResult", "export"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from exporter import pipeline

    return getattr(pipeline, name)
