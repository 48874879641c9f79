"""reference.npz: the proof that travels. It holds what a judge needs, so that no model is needed.

For n inputs: the outputs of eager PyTorch in float64 (the truth), and for each rounding form those
of eager PyTorch in that form (the floor), alone, and some in batches of two. All outputs of an
input are one row, see `exporter.proof.rows`. For each input: its name, its note and its SHA-256.
For each graph: the outputs that it has where nothing rounds, and the hash of each of its weights.
Synthetic inputs are made again. Real clips are stored as the model took them, or only by their
hash.

A rounding form says how a runtime rounds: `fp32`, `fp16`, `bf16`, or for int8 `int8-onnxruntime`,
`int8-bf16` and `int8-tensorrt`.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import ManifestError, UsageError
from exporter.files.packing import from_differences, from_planes, to_differences, to_planes
from exporter.files.text import parse_nested
from exporter.files.version import require_version
from model.outputs import LOGITS

REFERENCE = "reference.npz"
_VERSION = 3  # 1 holds every array as it is, 2 all inputs in batches
_CARD = "card"  # the entry that describes the others, as JSON
_MOST_BYTES = 2**31  # unpacked: a damaged file must not fill the memory
_FOR_OUTPUTS = 2**28
_AGAIN = "copy the directory again, or export it again"


@dataclass(frozen=True)
class KeptInput:
    """One input: which it is, and the hash of its values for each input of the model.

    `clip_sha256` is the hash of the clip's file; None for a synthetic input. `stored` says whether
    its values are in the file.
    """

    name: str
    note: str
    sha256: Mapping[str, str]
    clip_sha256: str | None = None
    stored: bool = False


@dataclass(frozen=True, eq=False)
class Floor:
    """The rows of eager PyTorch in one rounding form.

    Attributes:
        alone: Rows `(n, values)` of clips that are run alone.
        batched: Rows `(k, values)` of some of them, run in batches of two.
        paired: The places of these k inputs.
    """

    alone: np.ndarray
    batched: np.ndarray
    paired: tuple[int, ...]

    def beside(self, places: Sequence[int]) -> tuple[tuple[int, ...], np.ndarray]:
        """Give `paired` and `batched` for the inputs at `places` alone."""
        kept = [row for row, place in enumerate(self.paired) if place in places]
        return tuple(places.index(self.paired[row]) for row in kept), self.batched[kept]


@dataclass(frozen=True, eq=False)
class Structure:
    """What a graph file computes where nothing rounds.

    Attributes:
        places: The inputs that are compared, by their places.
        truth: Their rows `(k, values)` in float64 of the exported model, with the weights that the
            graph holds.
        weights: The hash of each initializer of the graph, of the scales of rounded values, and the
            types of values that are cast.
        unknown: What no export makes: initializers whose values no weight of the model has, scales
            and types.
    """

    places: tuple[int, ...]
    truth: np.ndarray
    weights: Mapping[str, str]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class KeptReference:
    """The content of reference.npz.

    Attributes:
        inputs: The n inputs in order, the real clips first.
        truth: Rows `(n, values)` of eager PyTorch in float64.
        floors: Rounding form -> its rows. `fp32` is always there.
        mask: Bool `(n, f)`, where the model takes a mask.
        clips: Place of an input -> its stored values, `(f, c, h, w)` or `(f, h, w, c)`.
        given: Name of an input -> its values `(n, ...)`, where the caller gave the inputs.
        outputs: The outputs in a row, each with its number of values (default: the logits).
        structures: File of a graph -> its structure; exports of the first version have none.
        described: `preprocessing`, `labels` and `task` of the model; older exports have none.
    """

    inputs: tuple[KeptInput, ...]
    truth: np.ndarray
    floors: Mapping[str, Floor]
    mask: np.ndarray | None
    clips: Mapping[int, np.ndarray]
    outputs: tuple[tuple[str, int], ...] = ()
    structures: Mapping[str, Structure] = field(default_factory=dict)
    given: Mapping[str, np.ndarray] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.outputs:
            object.__setattr__(self, "outputs", ((LOGITS, self.truth.shape[-1]),))


def require_room(stored: int) -> None:
    """Raise `UsageError` if the inputs to store, in bytes, leave no room for the outputs."""
    if stored > _MOST_BYTES - _FOR_OUTPUTS:
        raise UsageError(
            f"the inputs do not fit into {REFERENCE}",
            got=f"{stored / 2**30:.1f} GiB",
            expected=f"at most {(_MOST_BYTES - _FOR_OUTPUTS) / 2**30:.1f} GiB",
            remedy="give fewer, or keep clips by their hash only: --no-store-clips",
        )


def write_reference(path: Path, kept: KeptReference) -> None:
    """Write the file; the same content gives the same bytes."""
    arrays = {"truth": kept.truth}
    for form, floor in kept.floors.items():
        arrays |= {f"floor.{form}": floor.alone, f"batched.{form}": floor.batched}
    if kept.mask is not None:
        arrays["mask"] = kept.mask
    arrays |= {f"clip.{place}": clip for place, clip in kept.clips.items()}
    arrays |= {f"structure.{file}": one.truth for file, one in kept.structures.items()}
    arrays |= {f"given.{name}": array for name, array in kept.given.items()}
    card = {
        "version": _VERSION,
        "inputs": [asdict(entry) for entry in kept.inputs],
        "outputs": kept.outputs,
        "described": kept.described,
        "weights": {
            file: [one.places, one.weights, one.unknown] for file, one in kept.structures.items()
        },
        "paired": {form: floor.paired for form, floor in kept.floors.items()},
        "arrays": {name: [array.dtype.name, *array.shape] for name, array in arrays.items()},
    }
    packed = {}
    for name, array in arrays.items():
        near = _near(name, arrays, card)
        packed[name] = to_planes(array if near is None else to_differences(array, near))
    text = np.frombuffer(json.dumps(card).encode(), np.uint8)
    np.savez_compressed(path, **{_CARD: text, **packed})


def _near(
    name: str, arrays: Mapping[str, np.ndarray], card: Mapping[str, Any]
) -> np.ndarray | None:
    """Return the array that another one is stored as its difference from; None if as it is.

    Batched rows are near to the rows alone, and both, as the rows of a structure, to the truth.
    """
    kind, _, of = name.partition(".")
    if kind == "batched":
        return arrays[f"floor.{of}"][_paired(card, of)]
    if kind == "structure":
        return arrays["truth"][list(card["weights"][of][0])]
    return arrays["truth"] if kind == "floor" else None


def read_reference(path: Path) -> KeptReference:
    """Read the file, and check names, types and shapes.

    Raises:
        ManifestError: if it is missing or damaged.
        NoExportError: if it is of a newer tsformer.
    """
    if not path.is_file():
        raise ManifestError(
            f"{path.parent} has no {REFERENCE}: an older export, or not copied with it",
            remedy="export it again, or compute the truth with verify --checkpoint (needs torch)",
        )
    try:
        with zipfile.ZipFile(path) as packed:
            _check(sum(entry.file_size for entry in packed.infolist()) < _MOST_BYTES, "its size")
        with np.load(path, allow_pickle=False) as packed:
            card = parse_nested(packed[_CARD].tobytes().decode(), json.loads)
            require_version(path, card["version"], _VERSION)
            _check(set(packed.files) == {_CARD, *card["arrays"]}, "its entries")
            return _kept(card, _unpack(card, packed))
    except (
        OSError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,  # a method of compression
    ) as error:
        raise ManifestError(f"{path} is damaged: {error}", remedy=_AGAIN) from error


def _unpack(card: dict[str, Any], packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, (dtype, *shape) in card["arrays"].items():
        near = None if card["version"] == 1 else _near(name, arrays, card)
        if near is None:
            arrays[name] = from_planes(packed[name], dtype, *shape)
        else:
            kind = np.dtype(dtype)
            folded = from_planes(packed[name], f"u{kind.itemsize}", *shape)
            arrays[name] = from_differences(folded, near, kind)
    return arrays


def _kept(card: dict[str, Any], arrays: dict[str, np.ndarray]) -> KeptReference:
    entries = tuple(KeptInput(**entry) for entry in card["inputs"])
    for entry in entries:
        texts = (entry.name, entry.note, *dict(entry.sha256).values(), entry.clip_sha256 or "")
        _check(all(isinstance(text, str) for text in texts), "its inputs")
    truth, n = arrays["truth"], len(entries)
    _check(truth.ndim == 2 and truth.dtype == np.float64 and len(truth) == n, "its truth")
    forms = [name.partition(".")[2] for name in arrays if name.startswith("floor.")]
    _check("fp32" in forms, "its floors")
    floors = {}
    for form in forms:
        alone, batched = arrays[f"floor.{form}"], arrays[f"batched.{form}"]
        paired = _paired(card, form)
        fits = alone.shape == truth.shape and batched.shape == truth[paired].shape
        fits = fits and alone.dtype == batched.dtype == np.float32
        _check(fits, f"its floor of {form}")
        floors[form] = Floor(alone, batched, tuple(paired))
    mask = arrays.get("mask")
    _check(mask is None or (mask.dtype == bool and len(mask) == n), "its mask")
    stored = [place for place, entry in enumerate(entries) if entry.stored]
    clips = {place: arrays[f"clip.{place}"] for place in stored}
    structures = {
        file: Structure(tuple(places), arrays[f"structure.{file}"], hashes, tuple(unknown))
        for file, (places, hashes, unknown) in card.get("weights", {}).items()
    }
    for file, one in structures.items():
        expected = (len(one.places), truth.shape[1])
        fits = one.truth.shape == expected and one.truth.dtype == np.float64
        fits = fits and set(one.places) <= set(range(n))
        texts = (*dict(one.weights).values(), *one.unknown)
        fits = fits and all(isinstance(text, str) for text in texts)
        _check(fits, f"its structure of {file}")
    names = [name for name in arrays if name.startswith("given.")]
    given = {name.partition(".")[2]: arrays[name] for name in names}
    _check(all(len(array) == n for array in given.values()), "its inputs")
    known = 1 + 2 * len(floors) + (mask is not None) + len(clips) + len(given) + len(structures)
    _check(len(arrays) == known, "its entries")
    sizes = tuple((str(name), int(size)) for name, size in card.get("outputs") or ())
    values = sum(size for _, size in sizes) if sizes else truth.shape[1]
    _check(values == truth.shape[1] and len(dict(sizes)) == len(sizes), "its outputs")
    described = card.get("described", {})
    _check(isinstance(described, dict), "its description")
    return KeptReference(entries, truth, floors, mask, clips, sizes, structures, given, described)


def _paired(card: Mapping[str, Any], form: str) -> list[int]:
    """Return the places of the inputs that a floor has in batches too; all in an older file."""
    paired, count = card.get("paired", {}).get(form), len(card["inputs"])
    places = list(range(count) if paired is None else paired)
    _check(set(places) <= set(range(count)), f"its floor of {form}")
    return places


def _check(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"{what} cannot be understood")


def hash_array(array: np.ndarray) -> str:
    """Return the SHA-256 of type, shape and values."""
    head = f"{array.dtype.name} {array.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
