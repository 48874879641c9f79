import hashlib
import json
import os
import shutil

import pytest

from exporter.errors import ManifestError, NoExportError
from exporter.files.manifest import hash_checkpoint, read_manifest, sha256
from exporter.files.staging import MANIFEST

KEYS = {
    "manifest_version",
    "verdict",
    "spec",
    "model",
    "inputs",
    "outputs",
    "preprocessing",
    "labels",
    "task",
    "engine",
    "graph",
    "floors",
    "environment",
    "files",
}


@pytest.fixture
def directory(exported, tmp_path):
    """Make a copy of an export that a test may change."""
    return shutil.copytree(exported().directory, tmp_path / "export")


def damaged(directory, error=ManifestError, exit_code=5):
    with pytest.raises(error) as caught:
        read_manifest(directory)
    assert caught.value.exit_code == exit_code
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(directory, change):
    path = directory / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(content)), encoding="utf-8")


def test_a_manifest_describes_how_to_use_the_export(directory):
    manifest = read_manifest(directory)
    assert set(manifest) == KEYS
    assert manifest["verdict"] == "pass"
    assert manifest["inputs"] == [{"name": "video", "dtype": "float32", "shape": [1, 3, 3, 32, 48]}]
    assert manifest["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [1, 2]}]
    assert manifest["model"]["family"] == "fast_timesformer"
    assert manifest["model"]["config"]["attn_mechanism"] == "fastformer"
    assert manifest["spec"]["attn"] == "fastformer"
    assert manifest["spec"]["res"] == [32, 48]
    preprocessing = manifest["preprocessing"]
    assert preprocessing["layout"] == "rgb"
    assert (preprocessing["mean"], preprocessing["std"]) == ([0.0] * 3, [1.0] * 3)
    assert manifest["engine"]["status"] == "not built"
    assert manifest["labels"] is None
    assert manifest["task"] == "single-label"
    assert manifest["graph"]["sha256"] == manifest["files"]["model.onnx"]["sha256"]
    assert 0 < manifest["floors"]["fp32"] < 1e-5
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest["environment"]["packages"])


def test_a_manifest_lists_every_other_file_but_the_card_with_its_hash(directory):
    files = read_manifest(directory)["files"]
    assert set(files) == {path.name for path in directory.iterdir()} - {MANIFEST, "README.md"}
    assert set(files) == {
        "model.onnx",
        "reference.npz",
        "report.json",
        "report.md",
        "report.html",
    }
    for name, entry in files.items():
        content = (directory / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "report.json", "report.html"])
def test_one_changed_byte_of_any_file_is_refused(directory, name):
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 2] ^= 1
    (directory / name).write_bytes(content)
    assert f"{name} was changed since it was exported" in damaged(directory)


@pytest.mark.parametrize("name", ["model.onnx", "report.html"])
def test_a_missing_file_is_refused_where_it_is_needed(directory, name):
    (directory / name).unlink()
    with pytest.raises(ManifestError, match=f"lacks {name}; copy it there too"):
        read_manifest(directory, needs=("reference.npz", name))
    assert name in read_manifest(directory)["files"]


def test_the_hash_of_a_directory_is_that_of_its_names_and_hashes(tmp_path):
    for name in ("b.bin", "a.bin"):
        (tmp_path / name).write_text(name)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "c.bin").touch()
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.bin", "b.bin")}
    listing = "".join(f"{name} {digest}\n" for name, digest in digests.items())
    assert hash_checkpoint(tmp_path) == hashlib.sha256(listing.encode()).hexdigest()


@pytest.mark.skipif(os.name != "posix", reason="needs names that are no text")
def test_a_directory_may_hold_names_that_are_no_text(tmp_path):
    file = tmp_path / os.fsdecode(b"img\xff1.jpg")
    file.write_text("x")
    digest = hash_checkpoint(tmp_path)
    file.rename(tmp_path / os.fsdecode(b"img\xfe1.jpg"))
    assert hash_checkpoint(tmp_path) != digest


def test_what_is_no_export_is_refused_with_what_to_give(directory):
    """A checkpoint, a file of an export, and a folder of exports are given in its place."""
    (directory.parent / "other").mkdir()
    (trained := directory.parent / "other/trained.pth").touch()
    for path, remedy in {
        trained: f"exported first: tsformer export --checkpoint {trained}",
        directory / "model.onnx": f"; give {directory}",
        directory.parent: f"; give one of the exports in it, as {directory}",
        directory.parent / "nowhere": "No such file or directory",
    }.items():
        assert damaged(path, NoExportError, 3).endswith(remedy)


def test_a_directory_without_a_manifest_is_not_an_export(tmp_path):
    assert "is not an export of tsformer" in damaged(tmp_path, NoExportError, 3)
    assert "is not an export of tsformer" in damaged(tmp_path / "nowhere", NoExportError, 3)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        '{"files": 3}',
        '{"files": {"a": 3}}',
        '{"files": {"a": {}}}',
        '{"files": {"a": {"sha256": null}}, "spec": {}, "model": {}, "engine": {}}',
        '{"files": {"model.onnx": {"sha256": ""}}, "spec": {}, "model": {}, "engine": {}, '
        '"floors": null}',
    ],
)
def test_a_damaged_manifest_is_refused(directory, content):
    (directory / MANIFEST).write_text(content)
    assert "damaged" in damaged(directory)


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_a_pipe_in_its_place_is_not_waited_for(directory):
    (directory / MANIFEST).unlink()
    os.mkfifo(directory / MANIFEST)
    assert "it is a pipe or a device" in damaged(directory, NoExportError, 3)


@pytest.mark.parametrize("version", [2, 99])
def test_a_manifest_of_a_newer_version_is_refused_whatever_it_holds(directory, version):
    rewrite(directory, lambda content: content | {"manifest_version": version, "files": []})
    said = damaged(directory, NoExportError, 3)
    assert f"got version {version} of its format, expected at most 1; use the tsformer" in said


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.5])
def test_a_manifest_of_no_version_is_damaged(directory, version):
    rewrite(directory, lambda content: content | {"manifest_version": version})
    assert "damaged" in damaged(directory)
    rewrite(
        directory, lambda content: {k: v for k, v in content.items() if k != "manifest_version"}
    )
    assert "damaged" in damaged(directory)


def test_a_manifest_that_is_not_text_is_refused(directory):
    (directory / MANIFEST).write_bytes(b"\xff\xfe\x00")
    assert "damaged" in damaged(directory)


@pytest.mark.parametrize("key", ["spec", "engine", "model"])
def test_a_manifest_without_a_required_table_is_refused(directory, key):
    rewrite(directory, lambda content: {k: v for k, v in content.items() if k != key})
    assert "damaged" in damaged(directory)


def test_a_manifest_without_the_graph_is_refused(directory):
    rewrite(directory, lambda content: content | {"files": {}})
    assert "model.onnx" in damaged(directory)


def test_a_manifest_cannot_name_a_file_outside_its_directory(directory, tmp_path):
    (tmp_path / "secret").write_text("mine")
    entry = {"sha256": sha256(tmp_path / "secret"), "bytes": 4}

    def reach_out(content):
        return content | {"files": content["files"] | {"../secret": entry}}

    rewrite(directory, reach_out)
    assert "it lists ../secret, which is not a file's name" in damaged(directory)


def test_a_hash_covers_the_whole_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"tsformer" * 100_000)
    assert sha256(path) == hashlib.sha256(b"tsformer" * 100_000).hexdigest()
