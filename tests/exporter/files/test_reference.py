"""Test reference.npz: what is written is read again exactly, and damage is one clear line."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from exporter.errors import ManifestError, NoExportError, UsageError
from exporter.files.packing import to_planes
from exporter.files.reference import (
    REFERENCE,
    Floor,
    KeptInput,
    KeptReference,
    Structure,
    hash_array,
    read_reference,
    require_room,
    write_reference,
)

RNG = np.random.default_rng(0)


def logits(dtype=np.float32):
    return RNG.standard_normal((3, 2)).astype(dtype)


@pytest.fixture
def kept():
    clip = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    inputs = (
        KeptInput("a.mp4", "frames 0, 1 of 2", {"video": hash_array(clip)}, "f" * 64, stored=True),
        KeptInput("b.mp4", "", {"video": "0" * 64}, "e" * 64),
        KeptInput("normal-0", "synthetic", {"video": "1" * 64}),
    )
    floors = {form: Floor(logits(), logits(), (0, 1, 2)) for form in ("fp32", "int8-onnxruntime")}
    mask = np.array([[True, False]] * 3)
    one = Structure((0, 2), logits(np.float64)[:2], {"w": "0123"}, ("odd",))
    structures = {"model.onnx": one}
    truth = logits(np.float64)
    return KeptReference(inputs, truth, floors, mask, {0: clip}, structures=structures)


@pytest.fixture
def path(kept, tmp_path):
    write_reference(tmp_path / REFERENCE, kept)
    return tmp_path / REFERENCE


def test_every_bit_is_read_again(kept, path):
    found = read_reference(path)
    assert found.inputs == kept.inputs
    assert set(found.floors) == {"fp32", "int8-onnxruntime"}
    pairs = [(found.truth, kept.truth), (found.mask, kept.mask), (found.clips[0], kept.clips[0])]
    for form, floor in kept.floors.items():
        pairs += [(found.floors[form].alone, floor.alone)]
        pairs += [(found.floors[form].batched, floor.batched)]
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert list(found.clips) == [0]
    one, other = found.structures["model.onnx"], kept.structures["model.onnx"]
    np.testing.assert_array_equal(one.truth, other.truth)
    assert (one.places, one.weights, one.unknown) == ((0, 2), {"w": "0123"}, ("odd",))


def test_nan_and_pixels_survive(kept, tmp_path):
    truth = kept.truth.copy()
    truth[0, 0] = np.nan
    pixels = RNG.integers(0, 256, (2, 4, 5, 3), np.uint8)
    write_reference(
        tmp_path / REFERENCE, KeptReference(kept.inputs, truth, kept.floors, None, {0: pixels})
    )
    found = read_reference(tmp_path / REFERENCE)
    np.testing.assert_array_equal(found.truth, truth)
    np.testing.assert_array_equal(found.clips[0], pixels)
    assert found.mask is None


def test_the_same_content_gives_the_same_bytes(kept, path, tmp_path):
    write_reference(tmp_path / "again.npz", kept)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def refused(path):
    with pytest.raises(ManifestError) as caught:
        read_reference(path)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_reference_names_both_ways_out(tmp_path):
    message = refused(tmp_path / REFERENCE)
    assert "has no reference.npz" in message
    assert "export it again" in message
    assert "verify --checkpoint" in message


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_part_of_the_file_is_refused(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert "is damaged" in refused(path)


@pytest.mark.parametrize("place", range(0, 1400, 61))
def test_a_changed_byte_is_refused_or_changes_nothing(path, kept, place):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 0x55
    path.write_bytes(content)
    try:
        found = read_reference(path)
    except ManifestError as error:
        message = str(error)
    else:  # a byte of the archive that nothing reads, such as a date
        np.testing.assert_array_equal(found.truth, kept.truth)
        assert found.inputs == kept.inputs
        message = "is damaged"
    assert "is damaged" in message


def test_rows_in_batches_belong_to_their_inputs(kept, tmp_path):
    some = Floor(logits(), logits()[:2], (2, 0))
    write_reference(tmp_path / REFERENCE, replace(kept, floors={"fp32": some}))
    found = read_reference(tmp_path / REFERENCE).floors["fp32"]
    np.testing.assert_array_equal(found.alone, some.alone)
    np.testing.assert_array_equal(found.batched, some.batched)
    assert found.paired == (2, 0)
    places, rows = found.beside((1, 2))
    assert places == (1,)
    np.testing.assert_array_equal(rows, some.batched[:1])


def test_a_file_of_the_second_version_has_all_inputs_in_batches(path, kept):
    def to_version_2(card, _arrays):
        card["version"] = 2
        del card["paired"]

    rewrite(path, to_version_2)
    for form, floor in read_reference(path).floors.items():
        assert floor.paired == (0, 1, 2)
        np.testing.assert_array_equal(floor.batched, kept.floors[form].batched)


def rewrite(path, change):
    """Apply a change to the entries of the file."""
    with np.load(path) as packed:
        arrays = dict(packed)
    card = json.loads(arrays.pop("card").tobytes())
    change(card, arrays)
    np.savez(path, card=np.frombuffer(json.dumps(card).encode(), np.uint8), **arrays)


def test_a_file_of_the_first_version_holds_every_array_as_it_is(path, kept):
    def to_version_1(card, arrays):
        card["version"] = 1
        del card["paired"]
        for name, (dtype, *_) in card["arrays"].items():
            kind, _, form = name.partition(".")
            whole = {
                "truth": lambda: kept.truth,
                "floor": lambda form=form: kept.floors[form].alone,
                "batched": lambda form=form: kept.floors[form].batched,
                "structure": lambda form=form: kept.structures[form].truth,
            }.get(kind)
            if whole is not None:
                arrays[name] = to_planes(whole().astype(dtype))

    rewrite(path, to_version_1)
    found = read_reference(path)
    np.testing.assert_array_equal(found.truth, kept.truth)
    for form, floor in kept.floors.items():
        np.testing.assert_array_equal(found.floors[form].alone, floor.alone)
        np.testing.assert_array_equal(found.floors[form].batched, floor.batched)


@pytest.mark.parametrize(
    "change",
    [
        lambda card, arrays: card.update(version=0),
        lambda card, arrays: card.pop("inputs"),
        lambda card, arrays: card["inputs"].pop(),
        lambda card, arrays: card["inputs"][0].update(strange=1),
        lambda card, arrays: card["inputs"][0].update(name=3),
        lambda card, arrays: card["inputs"][0].update(sha256=None),
        lambda card, arrays: card["inputs"][0].update(sha256={"video": 3}),
        lambda card, arrays: card["inputs"][1].update(stored=True),
        lambda card, arrays: card["inputs"][0].update(stored=False),
        lambda card, arrays: arrays.update(more=np.zeros(1)),
        lambda card, arrays: arrays.pop("truth"),
        lambda card, arrays: card["arrays"].update(truth=["float64", 3, 3]),
        lambda card, arrays: card["arrays"].update(truth=["object", 3, 2]),
        lambda card, arrays: card["arrays"].update(truth=["float32", 3, 4]),
        lambda card, arrays: card["arrays"].update({"floor.fp32": ["float32", 2, 3]}),
        lambda card, arrays: card["arrays"].update(mask=["bool", 2, 3]),
        lambda card, arrays: card["weights"].update({"model.onnx": [[0, -1], {}, []]}),
        lambda card, arrays: card["weights"]["model.onnx"][1].update(w=3),
        lambda card, arrays: card["weights"]["model.onnx"][2].append(3),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(path, change):
    rewrite(path, change)
    assert "is damaged" in refused(path)


def test_a_description_that_is_nested_too_deeply_is_refused(path):
    with np.load(path) as packed:
        arrays = {name: packed[name] for name in packed.files if name != "card"}
    np.savez_compressed(path, card=np.frombuffer(b"[" * 100_000, np.uint8), **arrays)
    assert "is damaged: it is nested too deeply" in refused(path)


def test_a_file_of_a_newer_version_is_refused_by_that_reason(path):
    rewrite(path, lambda card, arrays: card.update(version=4))
    with pytest.raises(NoExportError, match="got version 4 of its format, expected at most 3"):
        read_reference(path)


def test_a_file_that_unfolds_to_more_than_the_limit_is_refused(path, monkeypatch):
    with zipfile.ZipFile(path) as packed:
        size = sum(entry.file_size for entry in packed.infolist())
    monkeypatch.setattr("exporter.files.reference._MOST_BYTES", size + 1)
    read_reference(path)
    monkeypatch.setattr("exporter.files.reference._MOST_BYTES", size)
    assert "its size" in refused(path)


def test_pickled_content_is_never_loaded(path):
    packed = io.BytesIO()
    np.save(packed, np.array([{"a": 1}], object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("card.npy", packed.getvalue())
    assert "is damaged" in refused(path)


def test_clips_that_could_not_be_read_again_are_refused_before_the_export():
    require_room(2**30)
    with pytest.raises(UsageError, match=r"the inputs do not fit .* got 1.9 GiB.*no-store-clips"):
        require_room(2**31 - 2**27)
