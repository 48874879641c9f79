"""Facts about this machine for every report, and the findings of the command `doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.errors.install import how_to_install
from exporter.machine.cores import usable_cores
from exporter.runners.cuda import GpuStatus, look_for_gpu
from exporter.runners.onnxruntime import available_devices
from exporter.runners.onnxruntime_cuda import OnnxRuntimeCudaRunner
from exporter.runners.openvino import precisions
from exporter.to_engine.flavours import available_flavours

_PACKAGES = (
    *("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "av"),
)
# A graph `y = x` of one float32, as bytes of ONNX: this file runs without the package onnx.
IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179"
    "120a0a08080112040a02080142040a00100d"
)


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
    findings = [_examine_torch(), _examine_onnx(), *_examine_onnxruntime(gpu)]
    for status in available_flavours().values():
        works = status.version is not None
        found = status.version or status.reason
        name = "TensorRT-RTX" if status.flavour == "rtx" else "TensorRT"
        findings.append(Finding(name, works, found, "" if works else status.remedy))
    return [*findings, _examine_openvino(), _examine_gpu(gpu), _examine_video()]


def _examine_gpu(status: GpuStatus) -> Finding:
    if status.gpu is None:
        found = status.reason if status.seen else "none"
        remedy = status.remedy if status.seen else "use a machine with an NVIDIA GPU"
        return Finding("NVIDIA GPU", False, found, remedy)
    gpu = status.gpu
    found = f"{gpu.name}, {gpu.memory_gb} GB, sm{gpu.compute_capability.replace('.', '')}"
    return Finding("NVIDIA GPU", True, f"{found}, driver for CUDA {gpu.driver_cuda}")


def _examine_torch() -> Finding:
    try:
        import torch
    except ModuleNotFoundError:
        found = "not installed: exports can be used here, but not made"
        return Finding("PyTorch", False, found, how_to_install("torch"))
    return Finding("PyTorch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")


def _examine_onnx() -> Finding:
    versions = {name: _version(name) for name in ("onnx", "onnxscript")}
    if missing := [name for name, version in versions.items() if version is None]:
        found = f"{' and '.join(missing)} not installed: exports can be used here, but not made"
        return Finding("ONNX", False, found, how_to_install(missing[0]))
    return Finding("ONNX", True, ", ".join(f"{name} {v}" for name, v in versions.items()))


def _examine_onnxruntime(gpu: GpuStatus) -> list[Finding]:
    try:
        devices = available_devices()
    except RuntimeFailure as error:
        return [Finding("ONNX Runtime", False, str(error), how_to_install("onnxruntime"))]
    version = _version("onnxruntime") or _version("onnxruntime-gpu") or "of unknown version"
    found = Finding("ONNX Runtime", True, f"{version} on {', '.join(devices)}")
    return [found, _examine_cuda(devices)] if gpu.gpu else [found]


def _examine_cuda(devices: Sequence[str]) -> Finding:
    """Open a tiny graph on CUDA: ONNX Runtime offers CUDA also where its libraries are missing."""
    part = "ONNX Runtime on CUDA"
    if "cuda" not in devices:
        remedy = f"pip uninstall onnxruntime, then {how_to_install('cuda')}"
        return Finding(part, False, "this ONNX Runtime is for CPUs only", remedy)
    try:
        with OnnxRuntimeCudaRunner(IDENTITY) as runner:
            runner.run({"x": np.zeros(1, np.float32)})
    except RuntimeFailure as error:
        return Finding(part, False, str(error), how_to_install("cuda"))
    return Finding(part, True, "runs a graph")


def _examine_openvino() -> Finding:
    version = _version("openvino")
    if version is None:
        return Finding("OpenVINO", False, "not installed", how_to_install("openvino"))
    try:
        offered = precisions()
    except RuntimeFailure as error:
        return Finding("OpenVINO", False, str(error), "install it again")
    return Finding("OpenVINO", True, f"{version}, {', '.join(offered)} on this CPU")


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


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
