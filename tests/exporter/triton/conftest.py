"""Run a real Triton server on this machine: its environment, a repository and the process.

The wheel of the server needs numpy below 2, and its clients need an older protobuf. So the server,
the clients and the scripts that use them run in `.venv-triton`, which is made once per checkout.
The tests read only their results.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from exporter import BatchProfile, ExportSpec
from exporter.cli import main
from exporter.pipeline import export

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CONSTRAINTS = HERE / "constraints.txt"
PACKAGES = ("nvidia-pytriton", "tritonclient[grpc,http]", "onnxruntime", "av")
NEWEST_PYTHON = (3, 12)  # the newest with wheels of numpy 1
STARTED_WITHIN = 90  # seconds
LIVES_AT_MOST = 600  # seconds, even if the tests are killed
CHECKPOINT = ROOT / "scripts" / "checkpoints" / "motion-fastformer.safetensors"


@pytest.fixture(scope="session")
def triton_venv():
    """Return the environment of the server; make it unless it exists with these versions."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the wheel of the Triton server is for Linux on x86-64")
    if sys.version_info[:2] > NEWEST_PYTHON:
        pytest.skip("the wheel of the Triton server needs numpy 1, which this Python has not")
    folder = ROOT / ".venv-triton"
    wanted = hashlib.sha256(CONSTRAINTS.read_bytes() + sys.version.encode()).hexdigest()
    mark, lock = folder / "installed", os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests may make it now
        if not mark.exists() or mark.read_text() != wanted:
            install(folder)
            mark.write_text(wanted)
    finally:
        os.close(lock)
    return folder


def install(folder):
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = run([*pip, "install", "-c", CONSTRAINTS, *PACKAGES], timeout=600)
    if done.returncode:
        # The tests may skip the server only if no package index can be reached.
        probe = run([*pip, "download", "--no-deps", "--dest", folder / "probe", "pip"], timeout=120)
        if probe.returncode:
            pytest.skip(f"no package index can be reached: {probe.stderr.strip()[-200:]}")
        pytest.fail(f"the server's environment cannot be made: {done.stderr}")


def run(command, *, timeout, **options):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, **options
    )


@pytest.fixture(scope="session")
def parsed_by():
    """Parse config.pbtxt files in the server's environment, with the server's schema."""

    def parse(venv, paths):
        done = run([venv / "bin" / "python", HERE / "parse.py", *paths], timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return parse


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """Export a trained model with a dynamic batch, and a masked model with a fixed batch."""
    folder = tmp_path_factory.mktemp("exports")
    quick = {"bench_seconds": 0.0, "engine": "none"}
    free = ExportSpec(checkpoint=CHECKPOINT, dynamic_batch=BatchProfile(1, 4, 8), **quick)
    sizes = {"dim": 32, "depth": 1, "frames": 3, "res": (32, 48), "dim_head": 16}
    masked = ExportSpec(model="timesformer_pytorch", mask=True, batch=2, **sizes, **quick)
    specs = {"motion": free, "masked": masked}
    return {name: export(spec, folder / name).directory for name, spec in specs.items()}


@pytest.fixture(scope="session")
def repository(exports, tmp_path_factory):
    """Write both exports into one repository by `tsformer triton`."""
    made = tmp_path_factory.mktemp("triton") / "models"
    assert main(["triton", str(exports["motion"]), str(made), "--ensemble"]) == 0
    assert main(["triton", str(exports["masked"]), str(made)]) == 0
    return made


class Server:
    """The wheel's `tritonserver`, with a stand-in for the backend that the wheel lacks."""

    def __init__(self, venv, repository, folder):
        self.venv, self.log = venv, folder / "server.log"
        self.http, self.grpc = free_port(), free_port()
        site = next((venv / "lib").glob("python3*")) / "site-packages"
        shipped = site / "pytriton" / "tritonserver"
        command = [
            "timeout",
            "--kill-after=10",
            LIVES_AT_MOST,
            shipped / "bin" / "tritonserver",
            "--model-repository",
            repository,
            "--backend-directory",
            backends(shipped, folder / "backends"),
            "--http-address",
            "127.0.0.1",
            "--http-port",
            self.http,
            "--grpc-address",
            "127.0.0.1",
            "--grpc-port",
            self.grpc,
            "--allow-metrics",
            "false",
            "--disable-auto-complete-config",
        ]
        libraries = (site / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
        environment = {
            "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(site),
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "OMP_NUM_THREADS": "2",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=folder,  # the python backend looks there first, before our `model`
                env=environment,
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self):
        deadline = time.monotonic() + STARTED_WITHIN
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server is not ready:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.2)

    def ready(self):
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{self.http}/v2/health/ready"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status == 200
        return False

    def index(self):
        """Return the state of every model that the server knows."""
        url = f"http://127.0.0.1:{self.http}/v2/repository/index"
        with urllib.request.urlopen(url, data=b"", timeout=5) as answer:
            return {model["name"]: model["state"] for model in json.load(answer)}

    def ask(self, script, *arguments):
        """Run a script in the server's environment; return its stdout."""
        python = self.venv / "bin" / "python"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = run([python, script, *map(str, arguments)], timeout=120, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def load(self, protocol, model, inputs, folder, *, requests=1, concurrency=1):
        """Send requests; return the server's counts with the errors, and the logits."""
        np.savez(folder / "inputs.npz", **inputs)
        ports = f"{self.http},{self.grpc}"
        told = self.ask(
            HERE / "load.py",
            protocol,
            ports,
            model,
            folder / "inputs.npz",
            requests,
            concurrency,
            folder / "answers.npz",
        )
        told = json.loads(told)
        if told["errors"]:
            return told, None
        with np.load(folder / "answers.npz") as answers:
            return told, answers["logits"]

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def backends(shipped, folder):
    """Collect the backends: the wheel's python backend, and the stand-in that it runs."""
    python = folder / "python"
    shutil.copytree(shipped / "backends" / "python", python)
    version = ".".join(map(str, sys.version_info[:2]))
    stub = shipped / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, python / stub.name)
    shutil.copytree(HERE / "backends" / "onnxruntime", folder / "onnxruntime")
    return folder


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="session")
def server(triton_venv, repository, tmp_path_factory):
    """Start the server and wait until all models are ready; stop it after the tests."""
    started = Server(triton_venv, repository, tmp_path_factory.mktemp("server"))
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.end()
