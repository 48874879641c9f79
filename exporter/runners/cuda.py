"""The one way to the GPU: CUDA through `cuda.bindings.runtime`, without torch.

    status = look_for_gpu()
    if status.gpu is None:
        raise RuntimeFailure(status.reason, remedy=status.remedy)

Every command uses the first GPU; the variable CUDA_VISIBLE_DEVICES chooses another.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import RuntimeFailure
from exporter.errors.install import how_to_install

NO_GPU = "this machine has no NVIDIA GPU"
_DRIVER_FACTS = Path("/proc/driver/nvidia/version")
_CUDA_ERROR_NO_DEVICE = 100


@dataclass(frozen=True)
class Gpu:
    """The GPU that is used.

    `driver_cuda` is the newest CUDA that the driver supports, `runtime_cuda` that of cuda-bindings.
    `driver` is the version of the driver; None where the system does not tell.
    """

    name: str
    count: int
    compute_capability: str
    memory_gb: float
    driver: str | None
    driver_cuda: str
    runtime_cuda: str


@dataclass(frozen=True)
class GpuStatus:
    """The GPU that is used; or why there is none, and what to do.

    `seen` tells that the machine has an NVIDIA driver, so that a GPU is expected to work.
    """

    gpu: Gpu | None
    seen: bool
    reason: str = ""
    remedy: str = ""

    @property
    def why_not(self) -> str:
        """Return the reason and the remedy in one clause."""
        return "; ".join(filter(None, (self.reason, self.remedy)))


def look_for_gpu() -> GpuStatus:
    """Look for a GPU, and explain in words why none can be used."""
    runtime = _import_bindings()
    if runtime is None:
        return _without_bindings()
    try:
        count = call("cudaGetDeviceCount")
        properties = call("cudaGetDeviceProperties", 0)
        gpu = Gpu(
            name=properties.name.decode(errors="replace"),
            count=count,
            compute_capability=f"{properties.major}.{properties.minor}",
            memory_gb=round(properties.totalGlobalMem / 2**30, 1),
            driver=_driver_version(),
            driver_cuda=_version(call("cudaDriverGetVersion")),
            runtime_cuda=_version(call("cudaRuntimeGetVersion")),
        )
    except RuntimeFailure as error:
        return _explain(error)
    return GpuStatus(gpu, seen=True)


def gpu_name() -> str | None:
    """The name of the GPU that is used, or None."""
    gpu = look_for_gpu().gpu
    return gpu and gpu.name


def require_gpu(user: str) -> Gpu:
    """Return the GPU; `user` names what needs it.

    Raises:
        RuntimeFailure: if there is no GPU, or it cannot be used.
    """
    status = look_for_gpu()
    if status.gpu is None:
        raise RuntimeFailure(f"{user}: {status.reason}", remedy=status.remedy or None)
    return status.gpu


def call(function: str, *arguments: Any) -> Any:  # noqa: ANN401  # what CUDA returns
    """Call a function of the CUDA runtime; return its result, or nothing if it has none.

    Raises:
        RuntimeFailure: with the name and the text of the error that the function returned.
    """
    runtime = _import_bindings()
    if runtime is None:
        raise RuntimeFailure("the package cuda-bindings is missing", remedy=how_to_install("cuda"))
    status, *results = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        name, text = (
            ask(status)[1].decode()
            for ask in (runtime.cudaGetErrorName, runtime.cudaGetErrorString)
        )
        raise RuntimeFailure(f"{function} failed: {name}: {text}")
    return results[0] if results else None


def constant(name: str) -> Any:  # noqa: ANN401  # a number, or an enumeration of CUDA
    """Return a constant of the CUDA runtime."""
    return getattr(_import_bindings(), name)


def _import_bindings() -> Any | None:  # noqa: ANN401  # a module
    """Import `cuda.bindings.runtime`; give None where it is not installed."""
    try:
        import cuda.bindings.runtime as runtime
    except ImportError:
        return None
    return runtime


def _without_bindings() -> GpuStatus:
    """Ask the driver itself, so that a GPU is not passed over for the lack of a package."""
    devices = _count_by_driver()
    if devices:
        reason = "this machine has an NVIDIA GPU, but the package cuda-bindings is missing"
        return GpuStatus(None, seen=True, reason=reason, remedy=how_to_install("cuda"))
    return _unreachable() if devices is None and _DRIVER_FACTS.exists() else _none()


def _explain(error: RuntimeFailure) -> GpuStatus:
    """Tell a machine without a GPU from one whose GPU cannot be used."""
    supported = call("cudaDriverGetVersion")
    if supported:
        if "cudaErrorNoDevice" in str(error):
            return _none()
        reason, remedy = f"the NVIDIA GPU cannot be used: {error}", ""
        if supported < call("cudaRuntimeGetVersion"):
            remedy = (
                f"update the driver, or install cuda-bindings for CUDA {_version(supported)}: "
                f"pip install 'cuda-bindings=={supported // 1000}.*'"
            )
        return GpuStatus(None, seen=True, reason=reason, remedy=remedy)
    return _unreachable() if _DRIVER_FACTS.exists() else _none()


def _unreachable() -> GpuStatus:
    return GpuStatus(
        None,
        seen=True,
        reason="this machine has an NVIDIA driver, but its library libcuda does not work here",
        remedy="start a container with access to the GPU (docker run --gpus all)",
    )


def _none() -> GpuStatus:
    return GpuStatus(None, seen=False, reason=NO_GPU)


def _count_by_driver() -> int | None:
    """Count the GPUs by the driver's own library; None if there is none, or it does not work."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if failed:
        return 0 if failed == _CUDA_ERROR_NO_DEVICE else None
    return count.value


def _driver_version() -> str | None:
    if not _DRIVER_FACTS.exists():
        return None
    found = re.search(r"\b\d{3,}\.[\d.]*\d", _DRIVER_FACTS.read_text(errors="replace"))
    return found and found[0]


def _version(number: int) -> str:
    """Write 12090 as CUDA does: 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"
