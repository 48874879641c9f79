"""Make tiny models and exports once for all tests of the exporter."""

import contextlib
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter import ExportSpec
from exporter.pipeline import export
from exporter.runners import cuda
from exporter.runners import open as opening

# Frames, height and width differ, so that a swap of two axes changes a shape.
TINY = {"depth": 1, "dim": 32, "dim_head": 16, "frames": 3, "res": (32, 48)}
# `tsformer`, with a line on stdout for each stage that it reaches.
TELLING = textwrap.dedent("""
    import sys
    from exporter.run import stages

    tell = stages.Stage.progress

    def progress(stage, fraction, what):
        print("reached", stage.name, what, flush=True)
        tell(stage, fraction, what)

    stages.Stage.progress = progress
    from exporter.cli import main
    sys.exit(main(sys.argv[1:]))
""")


@pytest.fixture(scope="session", autouse=True)
def _quick_exports(quick_exports):
    """Let every export of these tests share what never changes."""


# The fixtures that export. Their first test takes the time of an export, so all of them are slow.
EXPORTING = {"exported", "flexible", "everything", "headless", "large", "made", "real_sweep"}


def pytest_itemcollected(item):
    """Mark the tests of these fixtures."""
    if EXPORTING & set(item.fixturenames):
        item.add_marker(pytest.mark.slow)


_works_here = opening.works_here


@pytest.fixture(scope="session", autouse=True)
def _openvino_where_it_is_named():
    """Leave OpenVINO out of exports that name no runtime: compiling each of them takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "works_here", lambda *_: False)
        yield


@pytest.fixture
def openvino_by_default(monkeypatch):
    """Let an export be for OpenVINO if it names no runtime, as for users."""
    monkeypatch.setattr(opening, "works_here", _works_here)


@pytest.fixture
def without_gpu(monkeypatch):
    """A machine without an NVIDIA GPU, whatever this machine has."""
    status = cuda.GpuStatus(None, seen=False, reason=cuda.NO_GPU)
    monkeypatch.setattr(cuda, "_import_bindings", lambda: None)
    monkeypatch.setattr(cuda, "_without_bindings", lambda: status)


@pytest.fixture(scope="session")
def tiny():
    """Arguments of an `ExportSpec` whose export takes a few seconds."""
    return {**TINY, "bench_seconds": 0.0, "engine": "none", "runtimes": ("onnxruntime",)}


@pytest.fixture(scope="session")
def tiny_flags():
    """Arguments of the command line whose export takes a few seconds."""
    height, width = TINY["res"]
    sizes = {k.replace("_", "-"): v for k, v in TINY.items() if k != "res"}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    size = ("--res", f"{height}x{width}")
    return [*flags, *size, "--bench-seconds", "0", "--engine", "none", "--for", "onnxruntime"]


@pytest.fixture(scope="session")
def exported(tiny, real_clips, tmp_path_factory):
    """Export a mechanism once; tests must not change the result."""
    made = {}

    def get(attn="fastformer"):
        if attn not in made:
            out = tmp_path_factory.mktemp("exported") / attn
            spec = ExportSpec(attn=attn, video=(real_clips["bikes"],), **tiny)
            made[attn] = export(spec, out)
        return made[attn]

    return get


@pytest.fixture(scope="session")
def real_sweep(exported, tiny, tmp_path_factory):
    """Make the `sweep.json` of some real exports, one failed cell and one open cell."""
    larger = {**tiny, "res": (64, 80)}
    made = {
        **{(attn, tiny["res"]): exported(attn) for attn in ("fastformer", "performer", "regular")},
        **{
            (attn, larger["res"]): export(
                ExportSpec(attn=attn, **larger), tmp_path_factory.mktemp("larger") / attn
            )
            for attn in ("fastformer", "regular")
        },
    }
    rows = [
        {
            "cell": {"attn": attn, "res": f"{height}x{width}"},
            "key": f"{index:064x}",
            "status": "done",
            "verdict": result.verdict,
            "reason": "",
            "directory": f"cells/{attn} {height}x{width}",
            "seconds": sum(stage.seconds for stage in result.report.stages),
            "report": json.loads((result.directory / "report.json").read_text()),
        }
        for index, ((attn, (height, width)), result) in enumerate(made.items())
    ]
    nothing = {"verdict": None, "directory": None, "seconds": None, "report": None}
    failed, pending = (
        {"cell": {"attn": attn, "res": "64x80"}, "key": attn, "status": status, **nothing}
        for attn, status in (("performer", "failed"), ("<b>unheard</b> | of", "pending"))
    )
    failed |= {"reason": "engine: <img src=x onerror=alert(1)> | no memory", "seconds": 3.2}
    return {
        "sweep_version": 1,
        "axes": {"attn": ["fastformer", "performer", "regular"], "res": ["32x48", "64x80"]},
        "base": {name: value for name, value in tiny.items() if name != "res"},
        "environment": rows[0]["report"]["environment"],
        "rows": [*rows, failed, pending | {"reason": ""}],
    }


class Process:
    """`tsformer` in a new process; a test can wait until it reaches a stage."""

    def __init__(self, arguments, cwd):
        self.popen = subprocess.Popen(
            [sys.executable, "-c", TELLING, *map(str, arguments)],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, *words):
        """Wait until a line contains all the words; fail if the process ends before."""
        for line in self.popen.stdout:
            if all(word in line for word in words):
                return
        pytest.fail(f"ended before {words}: {self.popen.communicate()[1]}")

    def children(self):
        tasks = Path(f"/proc/{self.popen.pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]

    def end(self, signal):
        """Send the signal; return the exit code and stderr."""
        self.popen.send_signal(signal)
        _, said = self.popen.communicate(timeout=60)
        return self.popen.returncode, said


@pytest.fixture
def start(tmp_path):
    """Start `tsformer` with arguments in `tmp_path`; kill it after the test."""
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
    """Tell whether a process ends within five seconds, whatever its parent is."""

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


def make_attention(kind=TensorProto.FLOAT16, width=64, *, cast=False, weights=None, key=None):
    """A model of `softmax(q k^T) v` on `(1, 2, 8, width)`, with the logits cast if asked.

    `weights`: the query is a product with weights of this shape. `key`: the keys are a constant.
    """
    arrays = {"bias": np.zeros(1, np.float16)}
    nodes = [("Transpose", ["x"], ["kt"], {"perm": [0, 1, 3, 2]})]
    query = "x"
    if weights is not None:
        arrays["w"] = np.zeros(weights, np.float16)
        nodes += [("MatMul", ["x", "w"], ["m"]), ("Identity", ["m"], ["q"])]
        query = "q"
    if key is not None:
        arrays["kt"] = np.zeros(key, np.float16)
        nodes = nodes[1:]
    nodes += [("MatMul", [query, "kt"], ["l"])]
    if cast:
        nodes += [
            ("Cast", ["l"], ["l32"], {"to": TensorProto.FLOAT}),
            ("Softmax", ["l32"], ["a32"]),
        ]
        nodes += [("Cast", ["a32"], ["a"], {"to": kind})]
    else:
        nodes += [("Softmax", ["l"], ["a"])]
    nodes += [("MatMul", ["a", "x"], ["y"])]
    read = {name for _, names, *_ in nodes for name in names}
    shape = helper.make_tensor_value_info("x", kind, [1, 2, 8, width])
    graph = helper.make_graph(
        [
            helper.make_node(op, given, made, name=f"{op}_{i}", **(more[0] if more else {}))
            for i, (op, given, made, *more) in enumerate(nodes)
        ],
        "graph",
        [shape],
        [helper.make_tensor_value_info("y", kind, [1, 2, 8, width])],
        [numpy_helper.from_array(a, name) for name, a in arrays.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def attention():
    """`attention(kind, width, ...)`: see `make_attention`."""
    return make_attention
