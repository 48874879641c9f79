"""The inputs of an export, made again from its reference: the judge needs the very same values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.errors import ManifestError, VideoError
from exporter.files.manifest import hash_checkpoint
from exporter.files.reference import KeptInput, KeptReference, hash_array
from exporter.inputs.clips import Inputs, proof_clips, read_for
from model.config import ClipConfig
from model.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False)
class Regained:
    """Inputs that are here again: their values, and their places in the reference.

    `missing` names the clips that are known by their hash only, and were not given.
    """

    inputs: Inputs
    places: tuple[int, ...]
    missing: tuple[str, ...]


def describe_inputs(
    inputs: Inputs, videos: Sequence[Path], *, store: bool
) -> tuple[tuple[KeptInput, ...], dict[int, np.ndarray]]:
    """Describe the inputs of an export, whose first ones are `videos`, and choose what to store.

    Returns:
        The entries of the reference, and the values of the stored clips by their place.
    """
    entries: list[KeptInput] = []
    for place, (name, note) in enumerate(zip(inputs.names, inputs.notes, strict=True)):
        real = place < len(videos)
        hashes = {key: hash_array(array[place]) for key, array in inputs.arrays.items()}
        file_hash = hash_checkpoint(videos[place]) if real else None
        entries.append(KeptInput(name, note, hashes, file_hash, stored=real and store))
    stored = [place for place, entry in enumerate(entries) if entry.stored]
    return tuple(entries), {place: inputs.arrays["video"][place] for place in stored}


def regain_given(kept: KeptReference) -> Regained:
    """Take the inputs of an export that are all in its reference.

    Raises:
        ManifestError: if a value is not the one of the export.
    """
    for place, entry in enumerate(kept.inputs):
        got = {name: hash_array(array[place]) for name, array in kept.given.items()}
        if got != dict(entry.sha256):
            raise ManifestError(
                f"the input {entry.name!r} has other values than at export",
                remedy="copy the directory again, or export it again",
            )
    names, notes = (tuple(getattr(e, key) for e in kept.inputs) for key in ("name", "note"))
    inputs = Inputs(names, notes, dict(kept.given), given=True)
    return Regained(inputs, tuple(range(len(names))), ())


def regain_inputs(
    kept: KeptReference,
    videos: Sequence[Path],
    config: ClipConfig,
    preprocessing: Preprocessing,
    on_clip: Callable[[str], None] = lambda name: None,
) -> Regained:
    """Make the inputs of an export again: synthetic ones, stored clips, and the given clips.

    Args:
        kept: The reference of the export.
        videos: Clips of the export that the reference knows by their hash only.
        config: Sizes of a clip.
        preprocessing: How clips are read.
        on_clip: Called with the name of each clip that is read.

    Raises:
        VideoError: if a clip cannot be read, is not one of the export, or is read differently here.
        ManifestError: if a synthetic or stored input is not the one of the export.
    """
    names = {entry.name for entry in kept.inputs if entry.clip_sha256 is None}
    made = {name: clip for name, _, clip in proof_clips(config, preprocessing, names)}
    given = {hash_checkpoint(path): path for path in map(_existing, videos)}
    _refuse_strangers(given, kept.inputs)
    found: dict[int, np.ndarray] = {}
    missing: list[str] = []
    for place, entry in enumerate(kept.inputs):
        if place in kept.clips:
            found[place] = kept.clips[place]
        elif entry.clip_sha256 is None:
            found[place] = _synthetic(made, entry)
        elif entry.clip_sha256 in given:
            on_clip(entry.name)
            file = given[entry.clip_sha256]
            found[place] = read_for(config, preprocessing.one_view, file).array[0]
        else:
            missing.append(entry.name)
            continue
        _check_hash(entry, found[place], kept.mask, place)
    if not found:
        raise VideoError(
            f"none of the {len(missing)} inputs is at hand", remedy="give the clips with --video"
        )
    places = tuple(found)
    arrays = {"video": np.stack([found[place] for place in places])}
    if kept.mask is not None:
        arrays["mask"] = kept.mask[list(places)]
    entries = [kept.inputs[place] for place in places]
    names, notes = tuple(e.name for e in entries), tuple(e.note for e in entries)
    return Regained(Inputs(names, notes, arrays), places, tuple(missing))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise VideoError(f"{path} cannot be read", got="no such file", remedy="check the path")
    return path


def _refuse_strangers(given: dict[str, Path], inputs: Sequence[KeptInput]) -> None:
    known = {entry.clip_sha256 for entry in inputs}
    for digest, path in given.items():
        if digest not in known:
            raise VideoError(
                f"{path} is not a clip of this export, so its truth is not known",
                remedy="omit it, or compute the truth with --checkpoint (needs torch)",
            )


def _synthetic(made: dict[str, np.ndarray], entry: KeptInput) -> np.ndarray:
    if entry.name not in made:
        raise ManifestError(
            f"this version of tsformer makes no synthetic input {entry.name!r}",
            remedy="verify with the version that exported it, or export it again",
        )
    return made[entry.name]


def _check_hash(entry: KeptInput, video: np.ndarray, mask: np.ndarray | None, place: int) -> None:
    """Raise unless the values are those of the export: on others the truth is another."""
    arrays = {"video": video} | ({} if mask is None else {"mask": mask[place]})
    got = {name: hash_array(array) for name, array in arrays.items()}
    if got == dict(entry.sha256):
        return
    if entry.clip_sha256 and not entry.stored:
        raise VideoError(
            f"{entry.name} has other pixels here than at export: another FFmpeg decodes it",
            remedy="export again without --no-store-clips, or omit the clip",
        )
    raise ManifestError(
        f"the input {entry.name!r} has other values here than at export",
        got=f"sha256 {got['video'][:12]}",
        expected=entry.sha256.get("video", "none")[:12],
        remedy="verify with the version that exported it, or export it again",
    )
