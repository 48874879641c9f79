"""Whether a manifest reads clips and names classes as the model that was exported does.

No run of a graph shows this: it takes what the manifest makes of a clip, and gives numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.errors import ManifestError
from exporter.files.manifest import MANIFEST
from exporter.predict import Card


def check_described(directory: Path, card: Card, described: Mapping[str, Any]) -> None:
    """Raise unless the card of a directory has the preprocessing, labels and task of its model.

    Args:
        directory: The export.
        card: What its manifest says.
        described: `preprocessing`, `labels` and `task` of the model; empty if nothing tells them.

    Raises:
        ManifestError: if one differs, or the description is damaged.
    """
    if not described or not card.takes_clips:
        return
    try:
        taken = card.preprocessing.from_dict(described["preprocessing"])
        labels = described["labels"]
        expected = {
            "preprocessing": replace(taken, assumed=""),
            "labels": labels and tuple(labels),
            "task": described["task"],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"the description of the model in {directory} is damaged") from error
    got = {  # `assumed` holds words, which a version may change
        "preprocessing": replace(card.preprocessing, assumed=""),
        "labels": card.labels if card.named else None,
        "task": card.task,
    }
    for name, value in expected.items():
        if got[name] != value:
            raise ManifestError(
                f"{directory / MANIFEST} has another entry {name!r} than the exported model",
                remedy="copy the directory again, or export it again",
            )
