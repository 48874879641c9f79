"""The model that a LoRA adapter changes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def base_of(checkpoint: Path, config: Mapping[str, Any]) -> str | None:
    """Return the model that an adapter changes: the one in `config`, or what the adapter names.

    It is a directory, alone or below that of the adapter, or a name of the hub. It is None for a
    checkpoint that is no adapter, and for a damaged adapter, which cannot be loaded.
    """
    from model.families.huggingface_directory import find_base  # imports torch
    from model.weights.file import CheckpointError

    with contextlib.suppress(CheckpointError):
        return config.get("base_model") or find_base(checkpoint)
    return None
