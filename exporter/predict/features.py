"""Clips -> the outputs of an export as arrays: features, tokens, hidden states, attentions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import OutputError, RuntimeFailure, UsageError
from exporter.inputs.clips import read_for
from exporter.predict.batches import in_groups

if TYPE_CHECKING:
    from exporter.predict.predictor import Predictor

CLIPS = "clips"  # the array of an .npz file that has the names of the clips


@dataclass(frozen=True, eq=False)
class Described:
    """One clip: its name, the note of its reader, and each output of the export by name.

    `video` is what the model took, and `indices` are its frames in the file.
    """

    clip: str
    note: str
    outputs: dict[str, np.ndarray]
    video: np.ndarray
    indices: tuple[int, ...]


def describe(predictor: Predictor, clips: Sequence[str | Path]) -> Iterator[Described]:
    """Compute every output of the export for each clip.

    Raises:
        VideoError: if a clip cannot be read.
        RuntimeFailure: if the runtime fails, or a value is not finite.
    """
    card, runner = predictor.card, predictor.runner
    for paths in in_groups(clips, predictor.batches.least):
        read = [read_for(card.config, card.preprocessing.one_view, Path(path)) for path in paths]
        made = predictor.batches.run(np.concatenate([clip.array for clip in read]))
        for place, (path, clip) in enumerate(zip(paths, read, strict=True)):
            outputs = {name: array[place] for name, array in made.items()}
            for name, array in outputs.items():
                if not np.isfinite(array).all():
                    raise RuntimeFailure(f"{path}: NaN or Inf among the {name} of {runner.name}")
            yield Described(str(path), clip.note, outputs, clip.array[0], clip.indices)


def write_features(path: Path, described: Sequence[Described]) -> dict[str, tuple[int, ...]]:
    """Write outputs `(n, ...)` and the names of the n clips into an .npz file.

    Returns:
        The shape of each array by its name.

    Raises:
        UsageError: if no clip is given, or the path does not end in .npz.
        OutputError: if the file cannot be written.
    """
    if path.suffix != ".npz":
        raise UsageError("--features", got=str(path), expected="a path that ends in .npz")
    if not described:
        raise UsageError("--features needs a clip")
    arrays: dict[str, Any] = {
        name: np.stack([one.outputs[name] for one in described]) for name in described[0].outputs
    }
    try:
        arrays[CLIPS] = np.array([one.clip for one in described])
        np.savez(path, **arrays)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    return {name: array.shape for name, array in arrays.items() if name != CLIPS}
