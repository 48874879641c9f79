"""ONNX Runtime on one named provider; it never falls back to another silently.

The CPU and the plug-in for TensorRT-RTX are run here, CUDA in `onnxruntime_cuda.py`.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.errors.install import how_to_install
from exporter.runners.base import Arrays, Closing, check_inputs

if TYPE_CHECKING:  # an edge image runs files, and has no onnx
    import onnx

    Graph = Path | onnx.ModelProto | bytes

_LEAST_FOLDED = 2**26  # bytes of one constant
PLUGIN = "tensorrt_rtx"  # the device name of NVIDIA's plug-in provider
_PLUGIN_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    PLUGIN: "NvTensorRTRTXExecutionProvider",
}


def available_devices() -> tuple[str, ...]:
    """List the devices of this installation of ONNX Runtime, `cpu` first.

    Raises:
        RuntimeFailure: if ONNX Runtime is not installed.
    """
    providers = _import_onnxruntime().get_available_providers()
    devices = [device for device, name in _PROVIDERS.items() if name in providers]
    if PLUGIN not in devices and importlib.util.find_spec(_PLUGIN_PACKAGE):
        devices.append(PLUGIN)
    return tuple(devices)


class OnnxRuntimeRunner(Closing):
    """One session of ONNX Runtime.

    Args:
        graph: The ONNX file, or a model or its bytes in memory.
        device: `cpu`, or `tensorrt_rtx`: the plug-in.
        threads: Threads of one run.
        precision: The precision of the graph, for the report.
        integer_kernels: Compute int8 products by integer kernels. Without them they are exact: on a
            CPU without VNNI, the kernels for weights of 8 bits overflow.

    Raises:
        RuntimeFailure: if the graph does not load on the given device.
    """

    name = "onnxruntime"
    transfers_included = True

    def __init__(
        self,
        graph: Graph,
        device: str = "cpu",
        *,
        threads: int = 1,
        precision: str = "fp32",
        integer_kernels: bool = True,
    ) -> None:
        self._integer_kernels = integer_kernels
        self.device = device
        self.precision = precision
        self.threads = threads
        self._graph = graph
        self._session: Any = self._open()
        self.input_shapes: Mapping[str, tuple[int | None, ...]] = {
            value.name: tuple(dim if isinstance(dim, int) else None for dim in value.shape)
            for value in self._session.get_inputs()
        }

    def use_threads(self, threads: int) -> None:
        """Change the number of threads of all later runs."""
        if threads != self.threads:
            self.threads = threads
            self._reopen()

    def close(self) -> None:  # noqa: D102
        self._session = None

    def _settings(self) -> dict[str, str]:
        """Return the options of the provider."""
        return {}

    def _open(self) -> Any:  # noqa: ANN401  # an InferenceSession
        options = _import_onnxruntime().SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4  # 3 prints errors, which are raised anyway
        # Without this the threads spin for 50 ms after each run: they take a core from what comes
        # next, which is a clip to decode, or another runtime in a comparison of speeds.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        _limit_folding(options, self._graph)
        if not self._integer_kernels:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        return _open_session(self._graph, self.device, self._settings(), options)

    def _reopen(self) -> None:
        self._session = None  # free the old session first: memory may not hold two
        self._session = self._open()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute `logits` `(b, classes)` of `video` `(b, f, c, h, w)`."""
        if self._session is None:
            raise RuntimeFailure(f"{self.name}: the runner is closed")
        check_inputs(self, inputs)
        names = [value.name for value in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        except Exception as error:  # its exception classes share no public base
            raise RuntimeFailure(f"ONNX Runtime failed: {error}") from error


def write_optimised(graph: Path, out: Path) -> None:
    """Write a graph as ONNX Runtime optimises it for this CPU.

    Large weights go into a file `weights` beside `out`, since one file may not hold them.

    Raises:
        RuntimeFailure: if the graph does not load.
    """
    onnxruntime = _import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # silences the warning that the result fits this machine only
    _limit_folding(options, graph)
    options.optimized_model_filepath = str(out)
    aside = "session.optimized_model_external_initializers_file_name"
    options.add_session_config_entry(aside, "weights")
    try:
        onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes share no public base
        raise RuntimeFailure(f"ONNX Runtime does not load {graph.name}: {error}") from error


def run_options(**entries: str) -> Any:  # noqa: ANN401  # RunOptions
    """Make the options of one run."""
    options = _import_onnxruntime().RunOptions()
    for name, value in entries.items():
        options.add_run_config_entry(name, value)
    return options


def _open_session(graph: Graph, device: str, settings: dict[str, str], options: Any) -> Any:  # noqa: ANN401  # SessionOptions -> InferenceSession
    onnxruntime = _import_onnxruntime()
    provider, missing = _PROVIDERS[device], ""
    what = graph.name if isinstance(graph, Path) else "the graph"
    chosen: dict[str, Any] = {"providers": [(provider, settings)]}
    try:
        if device == PLUGIN:
            options.add_provider_for_devices(_plugin_devices(), settings)
            chosen = {}
        elif device == "cuda":
            missing = _preload_cuda()
        session = onnxruntime.InferenceSession(_source(graph), options, **chosen)
    except Exception as error:  # its exception classes share no public base
        raise RuntimeFailure(f"ONNX Runtime does not load {what}: {error}") from error
    if session.get_providers()[0] != provider:
        raise RuntimeFailure(
            f"ONNX Runtime fell back to another device for {what}",
            got=" ".join(filter(None, (session.get_providers()[0], missing))),
            expected=provider,
            remedy="see tsformer doctor for what is missing",
        )
    return session


def _limit_folding(options: Any, graph: Graph) -> None:  # noqa: ANN401  # SessionOptions
    """Leave constants to the run that are much larger than the graph: a few nodes claim any size.

    What is folded of weights is no larger than eight times the file: integers of 4 bits as float32.
    """
    size = graph.stat().st_size if isinstance(graph, Path) and graph.is_file() else 0
    name = "optimization.constant_folding_max_output_size_in_bytes"
    options.add_session_config_entry(name, str(max(_LEAST_FOLDED, 8 * size)))


def _source(graph: Graph) -> str | bytes:
    if isinstance(graph, Path):
        return str(graph)
    return graph if isinstance(graph, bytes) else graph.SerializeToString()


@cache
def _preload_cuda() -> str:
    """Load the libraries of CUDA that pip installed; return what failed, in words."""
    preload = getattr(_import_onnxruntime(), "preload_dlls", None)
    said = io.StringIO()
    if preload is not None:
        with redirect_stdout(said):
            preload()
    return " ".join(said.getvalue().split())


@cache
def _plugin_devices() -> list[Any]:
    """Register the plug-in once, and list the GPUs that it can use.

    Raises:
        RuntimeFailure: if there is none.
    """
    import onnxruntime_ep_nv_tensorrt_rtx as plugin  # pyright: ignore[reportMissingImports]

    onnxruntime = _import_onnxruntime()
    name = plugin.get_ep_name()
    onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise RuntimeFailure("the plug-in for TensorRT-RTX does not know this GPU")
    return devices[:1]


def onnxruntime_version() -> str:
    """Return the version of ONNX Runtime; packages of several names hold it."""
    return str(_import_onnxruntime().__version__)


def _import_onnxruntime() -> Any:  # noqa: ANN401  # a module
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeFailure(
            f"ONNX Runtime cannot be imported ({error}), and nothing is proven without it",
            remedy=how_to_install("onnxruntime"),
        ) from error
    onnxruntime.set_default_logger_severity(4)  # its allocator prints errors that are raised too
    return onnxruntime
