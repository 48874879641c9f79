"""Clips -> the outputs of an export as arrays: features, tokens, hidden states, attentions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import RuntimeFailure, UsageError
from exporter.files.place import require_place, whole_file
from exporter.inputs.clips import read_for
from exporter.predict.answers import mean_of_views
from exporter.predict.batches import in_groups
from model.outputs import FEATURES, LOGITS

if TYPE_CHECKING:
    from exporter.inputs.video import Clip
    from exporter.predict.predictor import Predictor

CLIPS = "clips"  # the array of an .npz file that has the names of the clips
_AVERAGED = (LOGITS, FEATURES)  # over the views of a clip; tokens of different views do not match


@dataclass(frozen=True, eq=False)
class Described:
    """One clip: its name, the note of its reader, and each output of the export by name.

    `video` is what the model took, and `indices` are its frames in the file. Of several views
    `logits` and `features` are the mean, and all else is of one view, in the centre.
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
        made = _outputs(predictor, read, list(card.outputs))
        if card.preprocessing.views.count > 1:
            names = [name for name in _AVERAGED if name in card.outputs]
            views = [read_for(card.config, card.preprocessing, Path(path)) for path in paths]
            means = _outputs(predictor, views, names)
            made = [one | mean for one, mean in zip(made, means, strict=True)]
        for path, clip, outputs in zip(paths, read, made, strict=True):
            for name, array in outputs.items():
                if not np.isfinite(array).all():
                    raise RuntimeFailure(f"{path}: NaN or Inf among the {name} of {runner.name}")
            yield Described(str(path), clip.note, outputs, clip.array[0], clip.indices)


def _outputs(
    predictor: Predictor, clips: Sequence[Clip], names: Sequence[str]
) -> list[dict[str, np.ndarray]]:
    """Compute some outputs of each clip, of several views their mean."""
    found = predictor.batches.outputs([clip.array for clip in clips], names)
    return [{name: mean_of_views(values) for name, values in one.items()} for one in found]


def require_features_file(path: Path) -> None:
    """Check the file of `write_features`, before clips are read for it.

    Raises:
        UsageError: if the path does not end in .npz.
        OutputError: if the file cannot be written.
    """
    if path.suffix != ".npz":
        raise UsageError("--features", got=str(path), expected="a path that ends in .npz")
    require_place(path)


def write_features(path: Path, described: Sequence[Described]) -> dict[str, tuple[int, ...]]:
    """Write outputs `(n, ...)` and the names of the n clips to an .npz file, whole or not at all.

    Returns:
        The shape of each array by its name.

    Raises:
        UsageError: if no clip is given, or the path does not end in .npz.
        OutputError: if the file cannot be written.
    """
    require_features_file(path)
    if not described:
        raise UsageError("--features needs a clip")
    arrays: dict[str, Any] = {
        name: np.stack([one.outputs[name] for one in described]) for name in described[0].outputs
    }
    arrays[CLIPS] = np.array([one.clip for one in described])
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    return {name: array.shape for name, array in arrays.items() if name != CLIPS}
