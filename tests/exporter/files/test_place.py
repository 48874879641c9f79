"""Test that a place where no file can be written is refused, before any work."""

import pytest

from exporter.cli import main
from exporter.errors import OutputError
from exporter.files.place import require_place


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "old.json").write_text("old")
    for name in ("old.json", "new.json"):
        require_place(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing/new.json", "No such file or directory"),
        ("file/new.json", "Not a directory"),
        ("folder", "it is a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path, name, why):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=f"cannot write .*{name}: {why}"):
        require_place(tmp_path / name)


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        (["explain", "export", "clip.mp4"], "-o", "x.png"),
        (["tune-precision", "export"], "-o", "x.json"),
    ],
)
def test_commands_refuse_the_place_before_they_read_the_export(
    tmp_path, monkeypatch, capsys, command, option, name
):
    monkeypatch.chdir(tmp_path)
    assert main([*command, option, f"missing/{name}"]) == 2
    error = capsys.readouterr().err
    assert error == f"tsformer: output: cannot write missing/{name}: No such file or directory\n"
