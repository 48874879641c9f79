"""Test `exporter.runners.cuda` against the real package without a driver, and planted answers."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest
from cuda.bindings import runtime

from exporter.errors import RuntimeFailure
from exporter.runners import cuda
from exporter.runners.cuda import Gpu, call, gpu_name, look_for_gpu, require_gpu

Error = runtime.cudaError_t
without_driver = pytest.mark.skipif(
    runtime.cudaDriverGetVersion()[1] > 0, reason="about machines without an NVIDIA driver"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC 12.3"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023"


@pytest.fixture
def answers(monkeypatch, tmp_path):
    """Answer as a machine with one GPU; a test changes what a call returns."""
    properties = SimpleNamespace(name=b"NVIDIA L4", major=8, minor=9, totalGlobalMem=24 * 2**30)
    given = {
        "cudaGetDeviceCount": (Error.cudaSuccess, 2),
        "cudaGetDeviceProperties": (Error.cudaSuccess, properties),
        "cudaDriverGetVersion": (Error.cudaSuccess, 13000),
        "cudaRuntimeGetVersion": (Error.cudaSuccess, 12090),
    }

    class Answers:
        def __getattr__(self, name):
            if name.startswith(("cudaError", "cudaGetError")):
                return getattr(runtime, name)
            return lambda *_arguments: given[name]

    monkeypatch.setattr(cuda, "_import_bindings", Answers)
    monkeypatch.setattr(cuda, "_DRIVER_FACTS", tmp_path / "version")
    return given


@pytest.fixture
def without_bindings(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "_import_bindings", lambda: None)
    monkeypatch.setattr(cuda, "_DRIVER_FACTS", tmp_path / "version")
    return monkeypatch


@without_driver
class TestTheRealPackageWithoutADriver:
    def test_there_is_no_gpu(self):
        status = look_for_gpu()
        assert (status.gpu, gpu_name()) == (None, None)
        assert status.seen is cuda._DRIVER_FACTS.exists()

    @pytest.mark.parametrize(
        ("function", "arguments"),
        [("cudaMalloc", (16,)), ("cudaStreamCreate", ()), ("cudaFree", (0,))],
    )
    def test_a_failing_call_names_itself_and_the_error(self, function, arguments):
        expected = f"{function} failed: cudaErrorInsufficientDriver: CUDA driver version is insuff"
        with pytest.raises(RuntimeFailure, match=expected):
            call(function, *arguments)

    def test_a_call_that_succeeds_returns_its_result(self):
        assert call("cudaRuntimeGetVersion") == runtime.cudaRuntimeGetVersion()[1] >= 12090

    def test_a_gpu_is_required_in_one_line(self):
        with pytest.raises(RuntimeFailure) as caught:
            require_gpu("the engine")
        assert str(caught.value).startswith("the engine: this machine has ")


class TestAMachineWithAGpu:
    @pytest.mark.parametrize(("text", "driver"), [(OPEN, "580.65.06"), (CLOSED, "535.104.05")])
    def test_its_facts_are_read(self, answers, text, driver):
        cuda._DRIVER_FACTS.write_text(text)
        expected = Gpu("NVIDIA L4", 2, "8.9", 24.0, driver, "13.0", "12.9")
        assert look_for_gpu().gpu == require_gpu("x") == expected
        assert gpu_name() == "NVIDIA L4"

    def test_the_version_of_the_driver_may_be_unknown(self, answers):
        assert look_for_gpu().gpu.driver is None

    def test_a_gpu_that_the_user_hides_is_no_gpu(self, answers):
        answers["cudaGetDeviceCount"] = (Error.cudaErrorNoDevice, None)
        status = look_for_gpu()
        assert (status.gpu, status.seen, status.why_not) == (None, False, cuda.NO_GPU)

    def test_a_driver_that_is_too_old_has_a_remedy(self, answers):
        answers["cudaGetDeviceCount"] = (Error.cudaErrorInsufficientDriver, None)
        answers["cudaDriverGetVersion"] = (Error.cudaSuccess, 12020)
        answers["cudaRuntimeGetVersion"] = (Error.cudaSuccess, 13050)
        status = look_for_gpu()
        assert (status.gpu, status.seen) == (None, True)
        assert "cudaErrorInsufficientDriver" in status.reason
        assert "pip install 'cuda-bindings==12.*'" in status.remedy
        with pytest.raises(RuntimeFailure, match="x: the NVIDIA GPU cannot be used"):
            require_gpu("x")

    def test_a_gpu_with_a_fault_is_not_passed_over(self, answers):
        answers["cudaGetDeviceCount"] = (Error.cudaErrorDevicesUnavailable, None)
        status = look_for_gpu()
        assert (status.gpu, status.seen, status.remedy) == (None, True, "")
        assert "cudaErrorDevicesUnavailable" in status.why_not

    def test_a_container_without_access_to_the_gpu_is_named(self, answers):
        cuda._DRIVER_FACTS.write_text(OPEN)
        answers["cudaGetDeviceCount"] = (Error.cudaErrorInsufficientDriver, None)
        answers["cudaDriverGetVersion"] = (Error.cudaSuccess, 0)
        status = look_for_gpu()
        assert status.seen
        assert "docker run --gpus all" in status.remedy


class TestWithoutThePackage:
    def test_a_gpu_that_only_the_driver_knows_is_a_finding_with_a_remedy(self, without_bindings):
        without_bindings.setattr(cuda, "_count_by_driver", lambda: 1)
        status = look_for_gpu()
        assert (status.gpu, status.seen) == (None, True)
        assert "the package cuda-bindings is missing" in status.reason
        assert "pip install 'tsformer[runtime-gpu]'" in status.remedy
        with pytest.raises(RuntimeFailure, match=r"engine: .*cuda-bindings is missing; pip inst"):
            require_gpu("engine")

    def test_a_call_names_the_package(self, without_bindings):
        with pytest.raises(RuntimeFailure, match="cuda-bindings is missing; pip install"):
            call("cudaMalloc", 1)

    @pytest.mark.parametrize(
        ("devices", "facts", "seen"),
        [(None, False, False), (0, False, False), (0, True, False), (None, True, True)],
    )
    def test_a_gpu_is_expected_only_where_a_driver_runs(
        self, without_bindings, devices, facts, seen
    ):
        without_bindings.setattr(cuda, "_count_by_driver", lambda: devices)
        if facts:
            cuda._DRIVER_FACTS.write_text(OPEN)
        assert look_for_gpu().seen is seen


class Driver:
    """The library of a driver, with the codes that its calls return."""

    def __init__(self, init=0, count=3):
        self.init, self.count = init, count

    def cuInit(self, flags):  # noqa: N802  # CUDA's name
        assert flags == 0
        return self.init

    def cuDeviceGetCount(self, pointer):  # noqa: N802  # CUDA's name
        pointer._obj.value = self.count
        return 0


@pytest.mark.parametrize(
    ("driver", "devices"),
    [(Driver(), 3), (Driver(init=100), 0), (Driver(init=999), None), (OSError("none"), None)],
)
def test_the_driver_counts_the_gpus(monkeypatch, driver, devices):
    def load(name):
        assert name == "libcuda.so.1"
        if isinstance(driver, OSError):
            raise driver
        return driver

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert cuda._count_by_driver() == devices


def test_the_package_is_loaded_only_when_a_gpu_is_looked_for():
    code = (
        "import sys, exporter.runners.cuda as cuda; print('cuda.bindings' in sys.modules)\n"
        "sys.modules['cuda'] = None; print(cuda._import_bindings())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "None"]
