"""Test a reader that closes the pipe early, as `head`: no error, and the usual exit code."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each test starts Python

TSFORMER = shlex.quote(str(Path(sys.executable).with_name("tsformer")))
# The shell waits until the reader has left, and prints the exit code of the command to stderr.
PIPE = "{{ sleep 0.2; {command}; echo exit code $? >&2; }} | {reader}"


def pipe(command, reader, cwd):
    script = PIPE.format(command=command, reader=reader)
    return subprocess.run(
        ["sh", "-c", script], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_help_ends_quietly_if_head_reads_three_lines(tmp_path):
    done = pipe(f"{TSFORMER} --help", "head -3", tmp_path)
    assert len(done.stdout.splitlines()) == 3
    assert done.stdout.startswith("Usage: tsformer")
    assert done.stderr == "exit code 0\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--help", 0),
        ("export --help", 0),
        ("--version", 0),
        ("doctor", 0),
    ],
)
def test_a_command_ends_quietly_if_nothing_reads_its_output(tmp_path, arguments, code):
    done = pipe(f"{TSFORMER} {arguments}", "true", tmp_path)
    assert (done.stdout, done.stderr) == ("", f"exit code {code}\n")


@pytest.mark.parametrize(("arguments", "code"), [("predict x", 2), ("advise .", 3)])
def test_a_command_ends_quietly_if_nothing_reads_its_errors(tmp_path, arguments, code):
    done = pipe(f"{TSFORMER} {arguments} 2>&1", "true", tmp_path)
    assert (done.stdout, done.stderr) == ("", f"exit code {code}\n")


@pytest.mark.parametrize(
    ("command", "code"),
    [("--version >&-", 0), ("predict x 2>&-", 2), ("predict x --debug 2>&-", 2)],
)
def test_a_stream_that_was_closed_before_changes_no_exit_code(tmp_path, command, code):
    done = subprocess.run(["sh", "-c", f"{TSFORMER} {command}"], cwd=tmp_path, check=False)
    assert done.returncode == code


def test_a_broken_pipe_to_a_worker_is_an_internal_error(tmp_path):
    """Only printed output may be lost. A broken pipe to a worker process is a failure."""
    code = (
        "import sys; from exporter import cli; from exporter.machine import environment\n"
        "def broken(): raise BrokenPipeError(32, 'Broken pipe')\n"
        "environment.examine = broken; sys.exit(cli.main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "internal: BrokenPipeError" in done.stderr
