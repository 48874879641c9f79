"""Test that a cell tells of what the machine refuses as every command does."""

import json
import os
import subprocess
import sys


def test_a_folder_that_went_away_is_the_reason_of_the_cell_and_no_defect(tmp_path):
    request = {"parent": os.getpid(), "lock": str(tmp_path / "gone" / ".measuring")}
    command = [sys.executable, "-m", "exporter.sweep.cell_worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as worker:
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()  # it stays open: the worker ends with it
        told = json.loads(worker.stdout.readline())
    assert told["kind"] == "failed"
    assert told["reason"].startswith(f"output: {tmp_path}/gone/.measuring cannot be used: got No")
