"""The default name of an export's directory."""

from __future__ import annotations

from pathlib import Path

from exporter.spec import DEFAULT_FAMILY, ExportSpec
from model.config import FRESH, PRESETS


def default_directory(spec: ExportSpec) -> Path:
    """Name a directory under `build/` by the options that differ most often between exports."""
    if spec.checkpoint:
        path = spec.checkpoint.absolute()
        name = path.name if path.is_dir() else path.stem
        size = f"{spec.res[0]}x{spec.res[1]}" if spec.res else None
    else:
        preset = PRESETS.get(spec.model or "", FRESH)
        own = "fastformer" if spec.model in (None, DEFAULT_FAMILY) else "regular"
        words = (spec.model, spec.attn or own, spec.scheme or "divided")
        name = "-".join(word for word in words if word)
        height, width = spec.res or (preset["height"], preset["width"])
        size = f"{height}x{width}"
    batch = f"b{spec.run_batch}" if spec.run_batch > 1 else None
    parts = (name, size, batch, spec.precision, "pixels" if spec.embed_preprocess else None)
    return Path("build") / "-".join(part for part in parts if part)
