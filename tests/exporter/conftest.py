"""Tiny models and exports, made once for all tests of the exporter."""

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from exporter import ExportSpec
from exporter.pipeline import export

torch.set_num_threads(2)

# Frames, height and width all differ, so that no two axes can be mistaken for each other.
TINY = {"depth": 1, "dim": 32, "dim_head": 16, "frames": 3, "res": (32, 48)}
# `tsformer`, telling on stdout which stage it has reached.
TELLING = textwrap.dedent("""
    import sys
    from exporter import stages

    tell = stages.Stage.progress

    def progress(stage, fraction, what):
        print("reached", stage.name, what, flush=True)
        tell(stage, fraction, what)

    stages.Stage.progress = progress
    from exporter.cli import main
    sys.exit(main(sys.argv[1:]))
""")


@pytest.fixture(scope="session")
def tiny():
    """Arguments of an `ExportSpec` that is exported in a few seconds."""
    return {**TINY, "bench_seconds": 0.0, "engine": "none"}


@pytest.fixture(scope="session")
def tiny_flags():
    """The same for the command line."""
    height, width = TINY["res"]
    sizes = {k.replace("_", "-"): v for k, v in TINY.items() if k != "res"}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    return [*flags, "--res", f"{height}x{width}", "--bench-seconds", "0", "--engine", "none"]


@pytest.fixture(scope="session")
def exported(tiny, real_clips, tmp_path_factory):
    """A finished export of a mechanism; not to be changed."""
    made = {}

    def get(attn="fastformer"):
        if attn not in made:
            out = tmp_path_factory.mktemp("exported") / attn
            spec = ExportSpec(attn=attn, video=(real_clips["bikes"],), **tiny)
            made[attn] = export(spec, out)
        return made[attn]

    return get


class Process:
    """`tsformer` in a process of its own, that can be waited for at a stage."""

    def __init__(self, arguments, cwd):
        self.popen = subprocess.Popen(
            [sys.executable, "-c", TELLING, *map(str, arguments)],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
        )

    def wait_for(self, *words):
        """Wait until a line holds all the words; they must come."""
        for line in self.popen.stdout:
            if all(word in line for word in words):
                return
        pytest.fail(f"ended before {words}: {self.popen.communicate()[1]}")

    def children(self):
        tasks = Path(f"/proc/{self.popen.pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]

    def end(self, signal):
        """Send the signal; gives the exit code and what was said on stderr."""
        self.popen.send_signal(signal)
        _, said = self.popen.communicate(timeout=60)
        return self.popen.returncode, said


@pytest.fixture
def start(tmp_path):
    """Start `tsformer` with arguments in `tmp_path`; nothing of it outlives the test."""
    started = []

    def launch(*arguments):
        started.append(Process(arguments, tmp_path))
        return started[-1]

    yield launch
    for process in started:
        process.popen.kill()
        process.popen.wait()
        process.popen.stdout.close()
        process.popen.stderr.close()


@pytest.fixture(scope="session")
def ended():
    """Whether a process ends within five seconds, adopted by whomever."""

    def check(pid):
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            state = "Z"
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                return True
            time.sleep(0.05)
        return False

    return check
