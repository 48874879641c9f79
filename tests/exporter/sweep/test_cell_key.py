"""The key of a cell changes with everything that decides its measurements, and nothing else."""

import json
from pathlib import Path

import pytest

from exporter import ExportSpec
from exporter.files.hub import Snapshot
from exporter.sweep import cell_key
from exporter.sweep.cell_key import Keys, code_hash, content_hash

ENVIRONMENT = {
    "date": "2026-11-21",
    "platform": "Linux-6.1",
    "python": "3.11.2",
    "cpu": "some",
    "cores": 2,
    "gpu": None,
    "packages": {"torch": "2.13.0"},
    "tensorrt": {"rtx": "1.7"},
}


def key(spec=None, threads=2, **environment):
    return Keys(ENVIRONMENT | environment).key(spec or ExportSpec(attn="regular"), threads)


def test_equal_cells_have_equal_keys():
    assert key() == key()
    assert len(key()) == 64


@pytest.mark.parametrize(
    "values", [{"attn": "performer"}, {"attn": "regular", "seed": 1}, {"bench_seconds": 1.0}]
)
def test_the_spec_changes_the_key(values):
    assert key(ExportSpec(**values)) != key()


@pytest.mark.parametrize(
    "entry",
    [{"packages": {"torch": "2.14.0"}}, {"cpu": "other"}, {"tensorrt": {}}, {"gpu": "H100"}],
)
def test_the_machine_and_its_packages_change_the_key(entry):
    assert key(**entry) != key()


def test_the_date_and_the_build_of_the_system_do_not_change_the_key():
    assert key(date="later", platform="Linux-6.2") == key()


def test_the_threads_of_the_timing_change_the_key():
    assert key(threads=1) != key()


def test_our_code_changes_the_key_but_the_command_line_does_not(monkeypatch, tmp_path):
    package = tmp_path / "exporter"
    for file in ("exporter/spec.py", "exporter/cli/doctor.py", "model/config.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1")
    monkeypatch.setattr(cell_key, "_PACKAGE", package)
    before = key()
    (package / "cli" / "doctor.py").write_text("2")
    assert key() == before
    (tmp_path / "model" / "config.py").write_text("2")
    assert key() != before


def test_the_hash_of_our_code_covers_its_files():
    assert code_hash() != content_hash(Path("none"))
    listed = {file.name for file in cell_key._PACKAGE.rglob("*.py")}
    assert {"export.py", "cell_key.py"} <= listed


class TestFiles:
    def test_content_changes_the_key_but_location_does_not(self, tmp_path):
        first, moved, other = (tmp_path / name / "w.pth" for name in "abc")
        for path, content in ((first, b"x"), (moved, b"x"), (other, b"y")):
            path.parent.mkdir()
            path.write_bytes(content)
        keys = [key(ExportSpec(checkpoint=path)) for path in (first, moved, other)]
        assert keys[0] == keys[1] != keys[2]

    @pytest.mark.parametrize("named", [True, False], ids=["by the adapter", "in the config"])
    def test_the_model_that_an_adapter_changes_decides_the_key(self, named, tmp_path):
        adapter, base = tmp_path / "adapter", tmp_path / "base"
        for folder in (adapter, base):
            folder.mkdir()
        path = str(base) if named else "gone"
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": path}))
        config = {} if named else {"base_model": str(base)}
        spec = ExportSpec(checkpoint=adapter, config=config)
        before = key(spec)
        (base / "model.safetensors").write_bytes(b"retrained")
        assert key(spec) != before

    def test_the_name_of_a_clip_changes_the_key_as_the_report_shows_it(self, tmp_path):
        for name in ("a.mp4", "b.mp4"):
            (tmp_path / name).write_bytes(b"x")
        one = key(ExportSpec(video=(tmp_path / "a.mp4",)))
        other = key(ExportSpec(video=(tmp_path / "b.mp4",)))
        assert one != other

    def test_every_clip_of_a_dataset_changes_the_key(self, tmp_path):
        clip = tmp_path / "left" / "1.mp4"
        clip.parent.mkdir()
        clip.write_bytes(b"x")
        spec = ExportSpec(eval=str(tmp_path))
        before = key(spec)
        clip.write_bytes(b"y")
        changed = key(spec)
        clip.rename(clip.with_name("2.mp4"))
        assert len({before, changed, key(spec)}) == 3

    def test_every_clip_of_a_list_changes_the_key(self, tmp_path):
        listed, clip = tmp_path / "clips.csv", tmp_path / "1.mp4"
        listed.write_text("1.mp4,left\n")
        clip.write_bytes(b"x")
        before = key(ExportSpec(eval=str(listed)))
        clip.write_bytes(b"y")
        assert key(ExportSpec(eval=str(listed))) != before

    def test_models_of_the_hub_differ_by_organisation_and_by_commit(self, monkeypatch):
        commits = {"a/model": "1", "b/model": "1"}
        monkeypatch.setattr(
            cell_key, "fetch", lambda name: Snapshot(name.id, commits[name.id], Path())
        )
        one, other = (key(ExportSpec(checkpoint=Path(name))) for name in commits)
        commits["a/model"] = "2"
        assert len({one, other, key(ExportSpec(checkpoint=Path("a/model")))}) == 3

    def test_a_missing_file_has_a_key_so_that_the_export_reports_it(self, tmp_path):
        assert key(ExportSpec(checkpoint=tmp_path / "none.pth"))
        assert content_hash(tmp_path / "none.pth") == "unread"
