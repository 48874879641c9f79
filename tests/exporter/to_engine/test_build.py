"""Real engines built with tensorrt_rtx, and every way in which a build can fail."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import EngineError
from exporter.spec import BatchProfile
from exporter.to_engine import process
from exporter.to_engine.build import Building, ShapeRange, TensorInfo, build_engine
from exporter.to_engine.flavours import available_flavours, choose_flavour
from exporter.to_engine.progress import PhaseTree

ROOT = Path(__file__).parents[3]
# The condition is the platform only. Where the `cpu` extra installs tensorrt_rtx, the tests must
# fail if it is missing.
needs_rtx = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="tensorrt-rtx-cu13 is for Linux on x86-64",
)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def write_onnx(path, *, batch=1, op="Softmax", depth=4, opset=20, attributes=None):
    """Write a graph of `depth` times MatMul and `op` on `(batch, 16)`."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "video"
    for i in range(depth):
        weights.append(numpy_helper.from_array(rng.standard_normal((16, 16), np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"], name=f"matmul_{i}"))
        x = "logits" if i == depth - 1 else f"x{i}"
        nodes.append(helper.make_node(op, [f"m{i}"], [x], name=f"op_{i}", **(attributes or {})))
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 16])
        for name in ("video", "logits")
    ]
    graph = helper.make_graph(nodes, "graph", shapes[:1], shapes[1:], weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("custom", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture
def static(tmp_path):
    return write_onnx(tmp_path / "model.onnx")


@pytest.fixture
def dynamic(tmp_path):
    return write_onnx(tmp_path / "model.onnx", batch="b")


@pytest.fixture
def engine(tmp_path):
    return tmp_path / "model.engine"


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def children():
    """Return the command lines of the children of this process, read from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = stat.with_name("cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):  # the process ended in the meantime
            continue
        if parent == os.getpid():
            found.append(command)
    return found


def fake_package(folder, monkeypatch, name, source):
    """Put a module with the name of a flavour before the real one, here and in the worker."""
    folder.joinpath(f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(folder))


def wait_for(file, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)


def gone(pid, seconds=5.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # dead, but its new parent has not collected the exit status yet
            return True
        time.sleep(0.05)
    return False


# --- builds that succeed


@pytest.mark.slow
@needs_rtx
def test_a_build_reports_its_progress_and_describes_the_engine(static, engine):
    progress = []
    info = build_engine(static, engine, flavour="rtx", on_progress=progress.append)
    data = engine.read_bytes()
    assert data.startswith(b"vtrt")
    assert (info.bytes, info.sha256) == (len(data), sha256(data).hexdigest())
    assert info.flavour == "rtx"
    assert re.match(r"\d+\.\d+", info.version)
    assert info.targets == ()
    assert info.inputs == (TensorInfo("video", (1, 16), "float32"),)
    assert info.outputs == (TensorInfo("logits", (1, 16), "float32"),)
    assert info.layers >= 8
    assert info.seconds > 0
    assert json.loads(json.dumps(asdict(info)))["inputs"][0]["shape"] == [1, 16]
    fractions = [report.fraction for report in progress]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert len(set(fractions)) > 10
    assert all(0 <= report.step <= report.steps for report in progress)
    assert len({report.phase for report in progress}) > 3
    assert files(engine.parent) == ["model.engine", "model.onnx"]


@needs_rtx
def test_a_dynamic_batch_has_the_shapes_of_its_profile(dynamic, engine):
    info = build_engine(dynamic, engine, flavour="rtx", profile=BatchProfile(1, 2, 4))
    expected = ShapeRange((1, 16), (2, 16), (4, 16))
    assert info.inputs == (TensorInfo("video", (None, 16), "float32", expected),)
    assert info.outputs == (TensorInfo("logits", (None, 16), "float32"),)


@needs_rtx
def test_explicit_targets_are_read_back(static, engine):
    info = build_engine(static, engine, flavour="rtx", targets=("sm86", "sm89", "sm86"))
    assert info.targets == ("sm86", "sm89")


@needs_rtx
def test_an_existing_engine_is_replaced(static, engine):
    engine.write_bytes(b"old")
    build_engine(static, engine, flavour="rtx")
    assert engine.read_bytes().startswith(b"vtrt")


@needs_rtx
@pytest.mark.slow
def test_a_script_without_main_guard_can_build(static, engine, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from exporter.to_engine.build import build_engine\n"
        f"print(build_engine(Path({str(static)!r}), Path({str(engine)!r}), flavour='rtx').bytes)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == engine.stat().st_size
    assert done.stderr == ""


# --- builds that are refused


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (1, {"targets": ("sm90",)}, "unknown engine target: got sm90, expected one of sm75, sm80"),
        (1, {"targets": ("sm75",)}, "could not build the engine: got .*FP32 GEMM"),
        (1, {"profile": BatchProfile(1, 2, 4)}, "batch of the graph is static: got batch sizes"),
        ("b", {}, "batch of the graph is dynamic: got no batch sizes.*--dynamic-batch"),
    ],
)
def test_a_request_that_tensorrt_cannot_build_is_refused(tmp_path, engine, batch, options, message):
    graph = write_onnx(tmp_path / "model.onnx", batch=batch)
    with pytest.raises(EngineError, match=message):
        build_engine(graph, engine, flavour="rtx", **options)
    assert files(tmp_path) == ["model.onnx"]


def test_targets_are_refused_by_a_flavour_without_targets(static, engine):
    with pytest.raises(EngineError, match=r"takes no targets: got sm86; .*--engine rtx"):
        build_engine(static, engine, flavour="tensorrt", targets=("sm86",))


def test_an_unknown_flavour_is_refused_with_the_nearest_name(static, engine):
    with pytest.raises(EngineError, match="did you mean 'tensorrt'"):
        build_engine(static, engine, flavour="tensorrtx")


def test_a_missing_output_folder_is_refused(static, tmp_path):
    with pytest.raises(EngineError, match=r"cannot write model\.engine"):
        build_engine(static, tmp_path / "none" / "model.engine", flavour="rtx")


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None])
def test_a_missing_or_invalid_onnx_file_is_refused(tmp_path, engine, content):
    graph = tmp_path / "model.onnx"
    if content is not None:
        graph.write_bytes(content)
    with pytest.raises(EngineError, match="not a valid ONNX graph"):
        build_engine(graph, engine, flavour="rtx")
    assert not engine.exists()


@needs_rtx
def test_an_unsupported_operator_is_refused_with_its_node_and_reason(tmp_path, engine):
    graph = write_onnx(tmp_path / "model.onnx", op="Frob", attributes={"domain": "custom"})
    with pytest.raises(EngineError, match=r"parser refused the graph: got node op_0 \(Frob\): \w+"):
        build_engine(graph, engine, flavour="rtx")


# --- builds that are interrupted


@pytest.mark.slow
@needs_rtx
@on_linux
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("phase", ["Building engine", "Optimizing graph"])
def test_cancelling_leaves_no_file_and_no_process(static, engine, kind, phase):
    def cancel(progress):
        if progress.phase == phase:
            raise kind("stop")

    begin = time.monotonic()
    with pytest.raises(kind, match="stop"):
        build_engine(static, engine, flavour="rtx", on_progress=cancel)
    assert time.monotonic() - begin < 8
    assert files(engine.parent) == ["model.onnx"]
    assert not [command for command in children() if "to_engine.worker" in command]


HANGING = """
    import os, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("native noise", flush=True)
    os.write(2, b"worse noise\\n")
    open({ready!r}, "w").write(str(os.getpid()))
    time.sleep(60)
"""


@on_linux
@pytest.mark.slow
def test_the_worker_ends_when_its_parent_is_killed(static, engine, tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    fake_package(tmp_path, monkeypatch, "tensorrt_rtx", HANGING.format(ready=str(ready)))
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from pathlib import Path\n"
        "from exporter.to_engine.build import build_engine\n"
        f"build_engine(Path({str(static)!r}), Path({str(engine)!r}), flavour='rtx')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(ready)
        worker = int(ready.read_text())
        # Ctrl-C reaches the whole process group. The worker must leave the reaction to its parent.
        os.kill(worker, signal.SIGINT)
        assert not gone(worker, 0.2)
    finally:
        parent.kill()
        parent.wait()
    assert gone(worker)
    assert not engine.exists()


@on_linux
@pytest.mark.slow
def test_ctrl_c_ends_a_worker_that_ignores_sigterm(static, engine, tmp_path, monkeypatch, capfd):
    ready = tmp_path / "ready"
    fake_package(tmp_path, monkeypatch, "tensorrt_rtx", HANGING.format(ready=str(ready)))

    def press_ctrl_c():
        wait_for(ready)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_ctrl_c).start()
    with pytest.raises(KeyboardInterrupt):
        build_engine(static, engine, flavour="rtx")
    assert gone(int(ready.read_text()), 0.1)
    assert capfd.readouterr() == ("", "")


@on_linux
def test_a_worker_starts_where_pipes_cannot_be_large(monkeypatch):
    monkeypatch.setattr(process, "_PIPE_BYTES", 2**30 + 1)
    with pytest.raises(OSError, match=r"not permitted|Invalid"):
        subprocess.Popen(["true"], stdout=subprocess.PIPE, pipesize=2**30 + 1)
    worker = process.Worker({"module": "nothing"})
    with closing(worker), pytest.raises(EngineError, match="nothing"):
        worker.answer(lambda _: None)


@on_linux
@pytest.mark.slow
def test_a_build_goes_on_beside_its_caller_until_it_is_closed(
    static, engine, tmp_path, monkeypatch
):
    ready = tmp_path / "ready"
    fake_package(tmp_path, monkeypatch, "tensorrt_rtx", HANGING.format(ready=str(ready)))
    building = Building(static, engine, flavour="rtx")
    wait_for(ready)
    engine.with_name(f".model.engine.{os.getpid()}.partial").write_bytes(b"half")
    building.close()
    assert gone(int(ready.read_text()), 0.1)
    assert files(tmp_path) == ["model.onnx", "ready", "tensorrt_rtx.py"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_a_native_crash_is_reported_with_its_signal_and_output(
    static, engine, tmp_path, monkeypatch, capfd, name
):
    crash = f"""
        import os, resource, signal
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(1, b"about to read address 0\\n")
        os.kill(os.getpid(), signal.{name})
    """
    fake_package(tmp_path, monkeypatch, "tensorrt_rtx", crash)
    with pytest.raises(EngineError, match=f"killed by {name}; .*about to read address 0"):
        build_engine(static, engine, flavour="rtx")
    assert not engine.exists()
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_ends_without_an_answer_is_reported_with_its_log(
    static, engine, tmp_path, monkeypatch
):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os\n"
        'os.write(1, b\'{"kind": "log", "severity": "ERROR", "text": "last words"}\\n{"ki\')\n'
        "os._exit(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(process, "WORKER", "worker")
    with pytest.raises(EngineError, match=r"without an answer \(exit code 3\).*ERROR: last words"):
        build_engine(static, engine, flavour="rtx")


def test_a_file_that_is_not_an_engine_is_refused(static, engine, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, sys\n"
        "open(json.loads(sys.stdin.readline())['engine'], 'w').write('text')\n"
        'print(\'{"kind": "done"}\')\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(process, "WORKER", "worker")
    with pytest.raises(EngineError, match="rtx wrote no engine: got 4 bytes"):
        build_engine(static, engine, flavour="rtx")
    assert "model.engine" not in files(tmp_path)


# --- flavours


@needs_rtx
def test_rtx_is_available_on_linux():
    status = available_flavours()["rtx"]
    assert status.version
    assert not status.reason


WORKING = """
    __version__ = "11.4.0"
    class ILogger:
        pass
    class NetworkDefinitionCreationFlag:
        pass
    class Builder:
        def __init__(self, logger):
            pass
        def create_network(self, flags):
            assert flags == 0  # without STRONGLY_TYPED, TensorRT 11 has only this kind of network
            return self
        def create_builder_config(self):
            return self
"""
NO_GPU = WORKING.replace(
    "pass\n        def", "raise TypeError('factory returned nullptr')\n        def"
)
NO_PARSER = "raise ImportError('libnvonnxparser.so.10: cannot open shared object file')"
NO_BINDINGS = "import tensorrt_bindings_of_no_such_name"
NO_CONFIG = WORKING.replace(
    "config(self):\n            return self", "config(self):\n            pass"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (NO_PARSER, "cannot be imported: got ImportError: libnvonnxparser.so.10"),
        (NO_GPU, "cannot create a builder: got factory returned nullptr"),
        (NO_BINDINGS, "needs 'tensorrt_bindings_of_no_such_name'"),
        (NO_CONFIG, "could not create a configuration: got no reason given"),
        ("import os; os.abort()", "killed by SIGABRT"),
    ],
)
def test_a_broken_tensorrt_is_reported_with_reason_and_remedy(
    tmp_path, monkeypatch, source, reason
):
    fake_package(tmp_path, monkeypatch, "tensorrt", source)
    status = available_flavours()["tensorrt"]
    assert status.version is None
    assert reason in status.reason
    assert status.remedy.startswith("pip install tensorrt")
    with pytest.raises(EngineError, match=f"{re.escape(reason)}.*; pip install tensorrt"):
        choose_flavour("tensorrt", gpu=True)


def test_auto_chooses_tensorrt_with_a_gpu_and_rtx_without(tmp_path, monkeypatch):
    fake_package(tmp_path, monkeypatch, "tensorrt", WORKING)
    fake_package(tmp_path, monkeypatch, "tensorrt_rtx", WORKING)
    assert choose_flavour("auto", gpu=True).flavour == "tensorrt"
    choice = choose_flavour("auto", gpu=False)
    assert choice.flavour == "rtx"
    assert "tensorrt builds only for a GPU" in choice.reason


def test_auto_without_a_working_flavour_gives_the_reason(tmp_path, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        fake_package(tmp_path, monkeypatch, name, NO_PARSER)
    choice = choose_flavour("auto", gpu=True)
    assert choice.flavour is None
    assert "pip install tensorrt-rtx-cu13" in choice.reason


def test_an_explicit_flavour_that_does_not_work_is_an_error(tmp_path, monkeypatch):
    assert choose_flavour("none", gpu=True).flavour is None
    with pytest.raises(EngineError, match="--engine rtx"):
        choose_flavour("tensorrt", gpu=False)
    with pytest.raises(EngineError, match="expected one of auto"):
        choose_flavour("trt", gpu=False)
    fake_package(tmp_path, monkeypatch, "tensorrt_rtx", NO_PARSER)
    with pytest.raises(EngineError, match="; pip install tensorrt-rtx-cu13"):
        choose_flavour("rtx", gpu=False)


# --- progress


def test_nested_phases_give_one_fraction_that_never_decreases():
    tree = PhaseTree()
    tree.start("engine", None, 4)
    assert tree.step("engine", 0).fraction == 0.25
    tree.start("graph", "engine", 2)
    assert tree.step("graph", 0).fraction == 0.375
    assert tree.finish("graph").fraction == 0.5
    assert tree.start("again", "engine", 10).fraction == 0.5  # the same step: must not decrease
    assert tree.step("nobody", 3).fraction == 0.5
    assert tree.start("orphan", "nobody", 1).fraction == 0.5
    assert tree.step("engine", 3).fraction == 1
    assert tree.finish("never started").step == 1
