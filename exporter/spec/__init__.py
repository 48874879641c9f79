"""What to export and how: the options of an export, declared and checked in one place."""

from exporter.spec.choices import (
    BF16_OPSET,
    DEFAULT_FAMILY,
    DEFAULT_OPSET,
    ENGINES,
    EXPLICIT_TARGETS,
    LOWER_PRECISIONS,
    MODEL_NAMES,
    OPSETS,
    OUTPUT_WORDS,
    PRECISIONS,
    REWRITE_NAMES,
    RUNTIMES,
    TARGETS,
)
from exporter.spec.clip import clip_of
from exporter.spec.export_spec import MODEL_ARGUMENTS, OF_THE_GRAPH, OPTIONS, ExportSpec
from exporter.spec.option import BatchProfile
from model.config import nearest
from model.words import listed

__all__ = [
    "BF16_OPSET",
    "DEFAULT_FAMILY",
    "DEFAULT_OPSET",
    "ENGINES",
    "EXPLICIT_TARGETS",
    "LOWER_PRECISIONS",
    "MODEL_ARGUMENTS",
    "MODEL_NAMES",
    "OF_THE_GRAPH",
    "OPSETS",
    "OPTIONS",
    "OUTPUT_WORDS",
    "PRECISIONS",
    "REWRITE_NAMES",
    "RUNTIMES",
    "TARGETS",
    "BatchProfile",
    "ExportSpec",
    "clip_of",
    "listed",
    "nearest",
]
