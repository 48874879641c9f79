"""Facts about this machine for every report, and the findings of the command `doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporter.errors import RuntimeFailure
from exporter.install import how_to_install
from exporter.runners.cuda import GpuStatus, look_for_gpu
from exporter.runners.onnxruntime import available_devices
from exporter.to_engine.build import available_flavours

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "av")


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`: a part, whether it works, what was found, and what to do."""

    part: str
    works: bool
    found: str
    remedy: str = ""


def describe() -> dict[str, Any]:
    """List the facts that explain measured figures, as values that JSON can hold."""
    gpu = look_for_gpu().gpu
    return {
        "tsformer": _version("tsformer"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_gb": _memory_gb(),
        "gpu": gpu and gpu.name,
        "cuda": gpu and {name: fact for name, fact in asdict(gpu).items() if name != "name"},
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "tensorrt": {
            name: status.version or status.reason for name, status in available_flavours().items()
        },
    }


def examine() -> list[Finding]:
    """Find out what works on this machine, and what to install for the rest."""
    gpu = look_for_gpu()
    findings = [_examine_torch(), _examine_onnxruntime(has_gpu=gpu.gpu is not None)]
    for status in available_flavours().values():
        works = status.version is not None
        found = status.version or status.reason
        name = "TensorRT-RTX" if status.flavour == "rtx" else "TensorRT"
        findings.append(Finding(name, works, found, "" if works else status.remedy))
    return [*findings, _examine_gpu(gpu), _examine_video()]


def _examine_gpu(status: GpuStatus) -> Finding:
    if status.gpu is None:
        need = "engines can be built by TensorRT-RTX, but run only on a machine with one"
        found, remedy = (status.reason, status.remedy) if status.seen else ("none", need)
        return Finding("NVIDIA GPU", False, found, remedy)
    gpu = status.gpu
    found = f"{gpu.name}, {gpu.memory_gb} GB, sm{gpu.compute_capability.replace('.', '')}"
    return Finding("NVIDIA GPU", True, f"{found}, driver for CUDA {gpu.driver_cuda}")


def _examine_torch() -> Finding:
    try:
        import torch
    except ModuleNotFoundError:
        found = "not installed: nothing can be exported or proven here, but predict works"
        return Finding("PyTorch", False, found, how_to_install("torch"))
    return Finding("PyTorch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")


def _examine_onnxruntime(*, has_gpu: bool) -> Finding:
    try:
        devices = available_devices()
    except RuntimeFailure as error:
        return Finding("ONNX Runtime", False, str(error), "pip install onnxruntime")
    version = _version("onnxruntime") or _version("onnxruntime-gpu") or "of unknown version"
    lacking = has_gpu and "cuda" not in devices
    remedy = "pip install onnxruntime-gpu instead, for the GPU" if lacking else ""
    return Finding("ONNX Runtime", not lacking, f"{version} on {', '.join(devices)}", remedy)


def _examine_video() -> Finding:
    version = _version("av")
    if version is None:
        return Finding("Video (PyAV)", False, "not installed", "pip install av")
    return Finding("Video (PyAV)", True, f"{version}, with its own FFmpeg")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int | None:
    """The number of cores that this process may use; None if not known."""
    if hasattr(os, "sched_getaffinity"):  # a container may allow fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
