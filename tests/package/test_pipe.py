"""A reader that leaves early, as `head` does: the command ends quietly, with its own exit code."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

TSFORMER = shlex.quote(str(Path(sys.executable).with_name("tsformer")))
# The shell tells on stderr what the command ended with, and waits until its reader has left.
PIPE = "{{ sleep 0.2; {command}; echo exit code $? >&2; }} | {reader}"


def pipe(command, reader, cwd):
    script = PIPE.format(command=command, reader=reader)
    return subprocess.run(
        ["sh", "-c", script], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_first_lines_of_the_help(tmp_path):
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
def test_a_reader_that_reads_nothing(tmp_path, arguments, code):
    done = pipe(f"{TSFORMER} {arguments}", "true", tmp_path)
    assert (done.stdout, done.stderr) == ("", f"exit code {code}\n")


@pytest.mark.parametrize(("arguments", "code"), [("predict x", 2), ("advise .", 3)])
def test_a_reader_of_messages_that_reads_nothing(tmp_path, arguments, code):
    done = pipe(f"{TSFORMER} {arguments} 2>&1", "true", tmp_path)
    assert (done.stdout, done.stderr) == ("", f"exit code {code}\n")


def test_a_pipe_that_breaks_elsewhere_is_no_quiet_end(tmp_path):
    """Only what is printed may be lost: a broken pipe to a worker is a failure."""
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
