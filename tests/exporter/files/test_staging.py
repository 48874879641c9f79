"""Test that the output directory is complete or absent after any event."""

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.errors import OutputError
from exporter.files.staging import ENTRY_MARK, MANIFEST, StagedDirectory, StagedEntries

NOBODY = 65534
OURS = '{\n  "manifest_version": 1,\n  "verdict": "pass",\n'


def fill(out, content="new", **options):
    with StagedDirectory(out, **options) as staged:
        (staged.path / MANIFEST).write_text(OURS + content)
        (staged.path / "model.onnx").write_text(content)
        staged.publish()
    return out


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(out, **options):
    with pytest.raises(OutputError) as caught, StagedDirectory(out, **options):
        pytest.fail("the directory was staged")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@contextmanager
def no_privileges():
    """Run as another user, because root may write anywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


# --- published


def test_the_output_appears_complete_at_publish_and_not_before(tmp_path):
    out = tmp_path / "x"
    with StagedDirectory(out) as staged:
        (staged.path / MANIFEST).touch()
        assert not out.exists()
        assert staged.path.parent == out.parent  # a rename must stay on one file system
        assert staged.path.name.startswith(".")
        staged.publish()
        assert tree(tmp_path) == ["x", f"x/{MANIFEST}"]
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}"]


def test_missing_parents_are_created(tmp_path):
    fill(tmp_path / "a" / "b" / "x")
    assert tree(tmp_path / "a") == ["b", "b/x", f"b/x/{MANIFEST}", "b/x/model.onnx"]


def test_a_relative_path_is_resolved_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with StagedDirectory(Path("x")) as staged:
        (staged.path / MANIFEST).touch()
        monkeypatch.chdir(elsewhere)
        staged.publish()
    assert (tmp_path / "x" / MANIFEST).exists()
    assert tree(elsewhere) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_an_ordinary_directory(tmp_path, umask):
    before = os.umask(umask)
    try:
        out = fill(tmp_path / "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~umask


# --- not published


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(error), StagedDirectory(tmp_path / "a" / "b" / "x") as staged:
        (staged.path / "model.onnx").touch()
        raise error
    assert tree(tmp_path) == []


def test_leaving_without_publish_leaves_nothing(tmp_path):
    with StagedDirectory(tmp_path / "x") as staged:
        (staged.path / "deep").mkdir()
        (staged.path / "deep" / "model.onnx").touch()
    assert tree(tmp_path) == []


def test_new_parents_with_files_of_others_are_kept(tmp_path):
    with StagedDirectory(tmp_path / "a" / "b" / "x"):
        (tmp_path / "a" / "theirs").touch()
    assert tree(tmp_path) == ["a", "a/theirs"]


def test_parents_that_existed_before_are_kept(tmp_path):
    (tmp_path / "a").mkdir()
    with StagedDirectory(tmp_path / "a" / "b" / "x"):
        pass
    assert tree(tmp_path) == ["a"]


def test_an_exception_after_publish_keeps_what_was_published(tmp_path):
    with pytest.raises(ValueError, match="later"), StagedDirectory(tmp_path / "x") as staged:
        (staged.path / MANIFEST).touch()
        staged.publish()
        raise ValueError("later")
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}"]


# --- an existing output


def test_an_existing_output_is_refused_and_unchanged(tmp_path):
    out = fill(tmp_path / "x", "old")
    assert "replace it with --force" in refused(out)
    assert (out / MANIFEST).read_text() == f"{OURS}old"
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}", "x/model.onnx"]


def test_force_replaces_an_export_as_a_whole(tmp_path):
    out = fill(tmp_path / "x", "old")
    (out / "model.engine").write_text("old")
    fill(out, "new", force=True)
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}", "x/model.onnx"]
    assert (out / "model.onnx").read_text() == "new"


def test_force_that_fails_keeps_the_older_export(tmp_path):
    out = fill(tmp_path / "x", "old")
    with pytest.raises(ValueError, match="midway"), StagedDirectory(out, force=True) as staged:
        (staged.path / "model.onnx").write_text("half")
        raise ValueError("midway")
    assert (out / "model.onnx").read_text() == "old"
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}", "x/model.onnx"]


def test_a_rename_that_fails_restores_the_older_export(tmp_path, monkeypatch):
    out = fill(tmp_path / "x", "old")
    rename = Path.rename

    def failing(path, target):
        if Path(target) == out and path.name != "old":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        fill(out, "new", force=True)
    assert (out / "model.onnx").read_text() == "old"
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}", "x/model.onnx"]


def test_force_does_not_replace_a_directory_that_is_not_an_export(tmp_path):
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").touch()
    assert "is not an export of tsformer" in refused(out, force=True)
    assert tree(tmp_path) == ["photos", "photos/holiday.jpg"]


@pytest.mark.parametrize(
    ("manifest", "others"),
    [
        ('{"name": "A page", "icons": []}', ["index.html"]),
        ('{"manifest_version": 3, "name": "An add-on of a browser"}', ["background.js"]),
        ('{"name": "A page that runs a graph"}', ["model.onnx"]),
        ("", ["report.json"]),
    ],
)
def test_force_does_not_replace_what_has_a_manifest_of_others(tmp_path, manifest, others):
    out = tmp_path / "page"
    out.mkdir()
    (out / MANIFEST).write_text(manifest)
    for name in others:
        (out / name).write_text("mine")
    assert "is not an export of tsformer" in refused(out, force=True)
    assert tree(out) == sorted([MANIFEST, *others])
    assert all((out / name).read_text() == "mine" for name in others)


@pytest.mark.parametrize("damage", ["cut", "empty", "directory", "link"])
def test_force_replaces_an_export_whose_manifest_is_damaged(tmp_path, damage):
    out = fill(tmp_path / "x", "old")
    if damage != "cut":
        (out / MANIFEST).unlink()
        (out / "report.json").touch()
    if damage == "empty":
        (out / MANIFEST).touch()
    elif damage == "directory":
        (out / MANIFEST).mkdir()
    elif damage == "link":
        (out / MANIFEST).symlink_to("nowhere")
    fill(out, "new", force=True)
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}", "x/model.onnx"]


@pytest.mark.parametrize("read", ["trained.pth", "clips/a.mp4", "."])
@pytest.mark.parametrize("through", ["x", "link"])
def test_force_does_not_remove_what_the_run_reads(tmp_path, read, through):
    out = fill(tmp_path / "x", "old")
    (tmp_path / "link").symlink_to(out)
    (out / "clips").mkdir()
    message = refused(out, force=True, reads=[tmp_path / "beside", tmp_path / through / read])
    assert f"{tmp_path / through / read} lies in {out}, which --force would remove" in message
    assert (out / "model.onnx").read_text() == "old"


def test_force_does_not_remove_the_current_directory(tmp_path, monkeypatch):
    out = fill(tmp_path / "x", "old")
    monkeypatch.chdir(out)
    assert "the current directory lies in" in refused(Path(), force=True)
    assert (out / "model.onnx").read_text() == "old"


def test_force_replaces_an_empty_directory(tmp_path):
    (tmp_path / "x").mkdir()
    refused(tmp_path / "x")
    fill(tmp_path / "x", force=True)
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}", "x/model.onnx"]


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_refused_even_with_force(tmp_path, force):
    (tmp_path / "x").write_text("mine")
    assert "is a file" in refused(tmp_path / "x", force=force)
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_link_without_a_target_is_refused_before_any_work(tmp_path, force):
    (tmp_path / "x").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "x", force=force)
    assert tree(tmp_path) == ["x"]


# --- an output that cannot be written


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x"):
        assert "cannot write" in refused(out)
    assert tree(tmp_path) == ["file"]


def test_the_message_names_an_output_that_the_system_refuses():
    assert "cannot write /proc/tsformer/x" in refused(Path("/proc/tsformer/x"))


@pytest.mark.parametrize("length", [245, 300])
def test_a_name_too_long_is_refused_and_leaves_no_parents(tmp_path, length):
    assert "name too long" in refused(tmp_path / "a" / ("x" * length))
    assert tree(tmp_path) == []


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_the_message_names_a_missing_permission(mode):
    with tempfile.TemporaryDirectory() as base:  # only its owner can enter tmp_path
        Path(base).chmod(0o755)
        locked = Path(base) / "locked"
        locked.mkdir()
        locked.chmod(mode)
        with no_privileges():
            assert "Permission denied" in refused(locked / "x")
        locked.chmod(0o755)
        assert tree(Path(base)) == ["locked"]


# --- staging directories of other runs


def leave_behind(parent, name):
    stale = parent / name
    stale.mkdir()
    (stale / "model.onnx").touch()
    return stale


def test_the_directory_of_a_killed_run_is_removed(tmp_path):
    leave_behind(tmp_path, ".x.abcd1234.partial")
    fill(tmp_path / "x")
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}", "x/model.onnx"]


@pytest.mark.parametrize("name", ["x[1]", "x*", "x?"])
def test_a_name_is_not_read_as_a_pattern(tmp_path, name):
    leave_behind(tmp_path, f".{name}.abcd1234.partial")
    bystander = leave_behind(tmp_path, ".x1.abcd1234.partial")
    fill(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {bystander.name, name}


def test_other_hidden_files_are_kept(tmp_path):
    (tmp_path / ".x").mkdir()
    (tmp_path / ".y.abcd1234.partial").mkdir()
    (tmp_path / ".x.notes").touch()
    fill(tmp_path / "x")
    assert {".x", ".y.abcd1234.partial", ".x.notes"} <= {path.name for path in tmp_path.iterdir()}


def test_the_directory_of_a_running_export_is_kept(tmp_path):
    with StagedDirectory(tmp_path / "x") as first:
        (first.path / MANIFEST).write_text("first")
        with StagedDirectory(tmp_path / "x") as second:
            assert first.path != second.path
            assert (first.path / MANIFEST).exists()
        assert (first.path / MANIFEST).exists()
        first.publish()
    assert (tmp_path / "x" / MANIFEST).read_text() == "first"


def test_a_directory_locked_by_another_process_is_kept(tmp_path):
    stale = leave_behind(tmp_path, ".x.abcd1234.partial")
    holder = textwrap.dedent("""
        import fcntl, os, sys
        fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
        print("locked", flush=True)
        sys.stdin.read()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", holder, stale],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "locked\n"
        fill(tmp_path / "x")
        assert (stale / "model.onnx").exists()
        process.stdin.close()
    fill(tmp_path / "x", force=True)
    assert not stale.exists()


def test_the_lock_is_released_after_publish(tmp_path):
    out = fill(tmp_path / "x")
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)


def test_of_two_runs_the_first_to_publish_wins(tmp_path):
    out = tmp_path / "x"
    with StagedDirectory(out) as first, pytest.raises(OutputError, match="exists"):
        (first.path / MANIFEST).write_text("first")
        with StagedDirectory(out) as second:
            (second.path / MANIFEST).write_text("second")
            first.publish()
            second.publish()
    assert (out / MANIFEST).read_text() == "first"
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}"]


def test_of_two_runs_with_force_the_last_to_publish_wins(tmp_path):
    out = tmp_path / "x"
    with StagedDirectory(out, force=True) as first, StagedDirectory(out, force=True) as second:
        (first.path / MANIFEST).write_text(f"{OURS}first")
        (second.path / MANIFEST).write_text(f"{OURS}second")
        second.publish()
        first.publish()
    assert (out / MANIFEST).read_text() == f"{OURS}first"
    assert tree(tmp_path) == ["x", f"x/{MANIFEST}"]


# --- entries of a shared directory


def add(out, *names, content="new", family=("a", "b", "c"), **options):
    with StagedEntries(out, names, family=family, **options) as staged:
        assert staged.path.parent == out.parent  # a server does not look there for entries
        for name in names:
            (staged.path / name).mkdir()
            (staged.path / name / ENTRY_MARK).write_text(content)
        staged.publish()


def contents(out):
    return {path.name: (path / ENTRY_MARK).read_text() for path in out.iterdir()}


def test_entries_appear_together_beside_others(tmp_path):
    out = tmp_path / "new" / "x"
    add(out, "other", family=("other",))
    add(out, "a", "b")
    assert contents(out) == {"other": "new", "a": "new", "b": "new"}
    assert [path.name for path in out.parent.iterdir()] == ["x"]


def test_a_family_is_replaced_as_a_whole_and_only_with_force(tmp_path):
    out = tmp_path / "x"
    add(out, "a", "b", "other", family=("a", "b", "other"), content="old")
    for names in (("a",), ("c",)):  # "c" too: its name is new, but the old entries become stale
        with pytest.raises(OutputError, match=r"exists; replace it with --force"):
            add(out, *names)
    assert set(contents(out).values()) == {"old"}
    add(out, "c", force=True)
    assert contents(out) == {"c": "new", "other": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_entry_of_others_blocks_only_its_own_name(tmp_path):
    (tmp_path / "x" / "a").mkdir(parents=True)
    with pytest.raises(OutputError, match="not made by tsformer"):
        add(tmp_path / "x", "a", force=True)
    add(tmp_path / "x", "b", force=True)
    assert (tmp_path / "x" / "a").is_dir()


def test_a_failed_move_of_one_entry_restores_the_old_ones(tmp_path, monkeypatch):
    out = tmp_path / "x"
    add(out, "a", "c", content="old")
    rename = Path.rename

    def fail_once(path, target):
        if path.name == "b":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OutputError, match="No space left"):
        add(out, "a", "b", force=True)
    assert contents(out) == {"a": "old", "c": "old"}
    with pytest.raises(OutputError, match="No space left"):
        add(tmp_path / "fresh", "a", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("why", ["mounted", "closed parent"])
def test_entries_are_staged_inside_where_beside_is_impossible(tmp_path, monkeypatch, why):
    out = tmp_path / "x"
    out.mkdir()
    if why == "mounted":  # a rename would cross file systems
        monkeypatch.setattr(os.path, "ismount", lambda path: path == out)
    else:
        monkeypatch.setattr(os, "access", lambda path, *_mode, **_how: path != tmp_path)
    with StagedEntries(out, ["a"], family=["a"]) as staged:
        assert staged.path.parent == out
        (staged.path / "a").mkdir()
        staged.publish()
    assert [path.name for path in out.iterdir()] == ["a"]


def test_entries_of_a_directory_without_permission_are_refused(tmp_path):
    (tmp_path / "x").mkdir(mode=0o700)
    with no_privileges(), pytest.raises(OutputError, match="Permission denied; give another rep"):
        add(tmp_path / "x" / "y", "a")


USES_UP_MEMORY = """
import resource, sys
from pathlib import Path
from exporter.files.staging import StagedDirectory

held = []
with StagedDirectory(Path(sys.argv[1])) as staged:
    (staged.path / "model.onnx").touch()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 2**26
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for size in (2**20, 2**14, 2**9):
        try:
            while True:
                held.append(bytearray(size))
        except MemoryError:
            pass
    raise MemoryError
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_a_run_that_uses_up_the_memory_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", USES_UP_MEMORY, str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(b"MemoryError")
    assert tree(tmp_path) == []
