"""A sweep keeps finished cells, records failed cells as rows, and continues after a kill."""

import fcntl
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from exporter import ExportSpec
from exporter.errors import OutputError, UsageError
from exporter.sweep.cell_process import CellProcesses, Order
from exporter.sweep.grid import Grid
from exporter.sweep.run import Cell, sweep

ROW_KEYS = {"cell", "key", "status", "verdict", "reason", "directory", "seconds", "report"}


@pytest.fixture
def made(monkeypatch, exported):
    """Make cells by copying an export; return the executed orders."""
    source, orders = exported().directory, []

    def run(self, order, on_stage=lambda stage, what: None):
        orders.append(order)
        on_stage("onnx", "")
        if order.spec.attn == "performer":
            return "memory ran out"
        shutil.copytree(source, order.out, dirs_exist_ok=True)
        return None

    monkeypatch.setattr(CellProcesses, "run", run)
    return orders


def run(directory, attns=("fastformer", "regular"), problem=None, **options):
    grid = Grid({}, {"attn": list(attns)})
    cells = [Cell({"attn": attn}, ExportSpec(attn=attn)) for attn in attns]
    if problem:
        cells[0] = Cell(cells[0].values, None, problem)
    return sweep(grid, cells, directory, **options)


def statuses(found):
    return [row["status"] for row in found["rows"]]


def log(directory):
    lines = (directory / "sweep.log").read_text().splitlines()
    return [json.loads(line) for line in lines]


class TestRows:
    def test_each_cell_has_a_row_with_its_report(self, tmp_path, made):
        found = run(tmp_path / "s")
        assert found == json.loads((tmp_path / "s" / "sweep.json").read_text())
        assert found["sweep_version"] == 1
        assert found["axes"] == {"attn": ["fastformer", "regular"]}
        assert found["environment"]["cores"]
        for row in found["rows"]:
            assert set(row) == ROW_KEYS
            assert (row["status"], row["verdict"], row["reason"]) == ("done", "pass", "")
            report = json.loads((tmp_path / "s" / row["directory"] / "report.json").read_text())
            assert row["report"] == report
            assert row["seconds"] == pytest.approx(sum(s["seconds"] for s in report["stages"]))
        assert found["rows"][0]["directory"].startswith("cells/fastformer-")

    def test_a_finished_cell_is_not_made_again(self, tmp_path, made):
        first = run(tmp_path / "s", ("fastformer",))
        second = run(tmp_path / "s", ("regular", "fastformer"))
        assert [order.spec.attn for order in made] == ["fastformer", "regular"]
        assert second["rows"][1] == first["rows"][0]
        events = [entry["event"] for entry in log(tmp_path / "s")]
        assert events == ["start", "done", "kept", "start", "done"]

    def test_a_cell_is_kept_if_other_axes_give_the_same_export(self, tmp_path, made):
        spec = ExportSpec(attn="regular", depth=2)
        for axes in ({"attn": "regular"}, {"depth": 2}):
            grid = Grid({}, {name: [value] for name, value in axes.items()})
            (row,) = sweep(grid, [Cell(axes, spec)], tmp_path / "s")["rows"]
            assert row["directory"].startswith("cells/regular-")
        assert len(made) == 1

    @pytest.mark.parametrize("damage", ["model.onnx", "manifest.json", "report.json"])
    def test_a_cell_with_a_changed_file_is_made_again(self, tmp_path, made, damage):
        found = run(tmp_path / "s", ("regular",))
        place = tmp_path / "s" / found["rows"][0]["directory"]
        (place / damage).write_bytes(b"{}")
        assert statuses(run(tmp_path / "s", ("regular",))) == ["done"]
        assert len(made) == 2

    def test_a_failed_cell_has_a_row_and_is_tried_again(self, tmp_path, made):
        for _ in range(2):
            found = run(tmp_path / "s", ("performer", "regular"))
            assert statuses(found) == ["failed", "done"]
            assert found["rows"][0]["reason"] == "memory ran out"
            assert found["rows"][0]["report"] is None
        assert Counter(order.spec.attn for order in made) == {"performer": 2, "regular": 1}

    def test_a_cell_without_a_valid_spec_has_a_failed_row(self, tmp_path, made):
        found = run(tmp_path / "s", problem="no such pair")
        assert statuses(found) == ["failed", "done"]
        assert found["rows"][0]["reason"] == "no such pair"
        assert len(made) == 1

    def test_an_unproven_cell_is_done_with_its_reason(self, tmp_path, made):
        found = run(tmp_path / "s", ("regular",))
        place = tmp_path / "s" / found["rows"][0]["directory"]
        manifest = json.loads((place / "manifest.json").read_text())
        report = json.loads((place / "report.json").read_text())
        report["parity"][0] |= {"verdict": "fail", "reason": "not a number"}
        (place / "report.json").write_text(json.dumps(report))
        del manifest["files"]["report.json"]
        (place / "manifest.json").write_text(json.dumps(manifest | {"verdict": "fail"}))
        (row,) = run(tmp_path / "s", ("regular",))["rows"]
        assert (row["status"], row["verdict"], row["reason"]) == ("done", "fail", "not a number")
        assert len(made) == 1

    def test_two_cells_of_the_same_export_are_refused(self, tmp_path):
        cells = [Cell({"res": res}, ExportSpec(res=(32, 32))) for res in (32, "32x32")]
        with pytest.raises(UsageError, match="the same export: got 32 and 32x32"):
            sweep(Grid(), cells, tmp_path / "s")
        assert not (tmp_path / "s").exists()


class TestDirectory:
    def test_with_other_content_is_refused_and_unchanged(self, tmp_path):
        (tmp_path / "mine.txt").write_text("x")
        with pytest.raises(OutputError, match="not empty and no sweep"):
            run(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_that_cannot_be_written_is_an_error(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(OutputError, match="cannot write"):
            run(tmp_path / "file" / "s")
        with pytest.raises(OutputError, match="cannot write"):
            run(tmp_path / "file")

    def test_is_refused_while_another_sweep_uses_it(self, tmp_path, made):
        run(tmp_path)
        with (tmp_path / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(OutputError, match="another sweep is at work"):
                run(tmp_path)


def test_jobs_share_the_threads_but_each_timing_has_all_threads(tmp_path, made, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seen = []
    run(tmp_path, jobs=8, on_progress=seen.append)  # there are only 2 cells, so only 2 jobs
    assert [(order.build_threads, order.threads) for order in made] == [(1, 2)] * 2
    assert (seen[0].settled, seen[0].total, seen[-1].settled) == (0, 2, 2)
    assert seen[-1].seconds_left == 0
    assert any("regular: onnx" in what for now in seen for what in now.running)


@pytest.mark.slow
def test_a_cell_is_timed_alone_and_with_all_threads(tmp_path, tiny):
    """The lock held here says that another cell works. So the cell waits with its timing."""
    spec, stages = ExportSpec(attn="regular", **tiny), []
    with (tmp_path / "lock").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)

        def on_stage(stage, what):
            stages.append(stage)
            if stage == "waiting":
                time.sleep(0.5)  # without the lock, the cell would continue now
                stages.append("we are done")
                fcntl.flock(other, fcntl.LOCK_UN)

        order = Order(spec, tmp_path / "made", tmp_path / "lock", 1, 2)
        assert CellProcesses().run(order, on_stage) is None
    assert stages.index("parity") < stages.index("we are done") < stages.index("latency")
    report = json.loads((tmp_path / "made" / "report.json").read_text())
    assert [row["threads"] for row in report["latency"]] == [2, 2]
    assert report["environment"]["threads"] == 2


class TestProcesses:
    @pytest.fixture
    def order(self, tmp_path, tiny):
        spec = ExportSpec(attn="regular", **tiny)
        return Order(spec, tmp_path / "made", tmp_path / "lock", 2, 2)

    @pytest.mark.slow
    def test_a_killed_cell_gives_a_reason_and_no_output(self, order):
        processes = CellProcesses()

        def kill(stage, what):
            processes._running[0].kill()

        assert "was killed" in processes.run(order, kill)
        assert not order.out.exists()

    @pytest.mark.slow
    def test_stop_ends_a_running_cell_and_leaves_no_output(self, order, tmp_path, ended):
        processes, pids = CellProcesses(), []

        def stop(stage, what):
            if stage == "onnx" and not pids:
                pids.append(processes._running[0].pid)
                processes.stop()

        assert processes.run(order, stop)
        assert ended(pids[0])
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        assert processes.run(order) == "interrupted"  # no further cell is started

    def test_a_cell_that_cannot_start_gives_a_reason(self, order, monkeypatch):
        monkeypatch.setattr(sys, "executable", "/bin/false")
        assert "exit code 1" in CellProcesses().run(order)


# --- sweeps that are killed or interrupted


def start(directory):
    command = [sys.executable, "-m", "exporter", "sweep", "-o", str(directory), "--quiet"]
    # A side of 40 is no multiple of the patch size: these cells fail.
    command += ["--attn", "fastformer,regular", "--res", "32x48,40", "--frames", "3"]
    command += ["--depth", "1", "--dim", "32", "--dim-head", "16", "--engine", "none"]
    command += ["--for", "onnxruntime"]
    return subprocess.Popen([*command, "--bench-seconds", "0"], stderr=subprocess.PIPE, text=True)


def kill_after(directory, count):
    """Start a sweep; kill it at a random time after the start of its `count`-th cell."""
    process = start(directory)
    while True:
        assert process.poll() is None, process.communicate()[1]
        path = directory / "sweep.log"
        events = log(directory) if path.exists() else []
        if sum(e["event"] == "start" and e["pid"] == process.pid for e in events) >= count:
            break
        time.sleep(0.02)
    time.sleep(random.uniform(0.0, 4.0))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_sweep_killed_twice_continues_and_makes_no_cell_twice(tmp_path):
    directory, seen = tmp_path / "s", {}
    for count in (1, 2):
        kill_after(directory, count)
        # The file is complete after a kill too.
        assert statuses(json.loads((directory / "sweep.json").read_text()))
        seen |= {path: path.stat().st_ino for path in directory.glob("cells/*/model.onnx")}
    process = start(directory)
    _, said = process.communicate()
    assert process.returncode == 4
    assert said.startswith("tsformer: sweep: 2 of 4 cells failed, first fastformer 40: ")

    found = json.loads((directory / "sweep.json").read_text())
    assert statuses(found) == ["done", "failed", "done", "failed"]
    assert "multiple of patch_size" in found["rows"][1]["reason"]
    entries = log(directory)
    finished = Counter(entry["key"] for entry in entries if entry["event"] == "done")
    assert max(finished.values()) == 1
    after_its_end = [
        later["event"]
        for place, entry in enumerate(entries)
        for later in entries[place + 1 :]
        if entry["event"] in ("done", "kept") and later["key"] == entry["key"]
    ]
    assert set(after_its_end) <= {"kept"}
    # The files are the same, not new copies.
    assert all(path.stat().st_ino == inode for path, inode in seen.items())
    assert not [path for path in (directory / "cells").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_ctrl_c_prints_one_line_and_leaves_no_process(tmp_path, ended):
    process = start(tmp_path / "s")
    while not (tmp_path / "s" / "sweep.log").exists():
        time.sleep(0.05)
    children: list[int] = []
    while not children:
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what is finished is kept" in said
    assert said.count("\n") == 1
    assert all(ended(child) for child in children)
