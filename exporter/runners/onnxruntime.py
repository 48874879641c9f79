"""ONNX Runtime on one named provider, CPU or CUDA; it never falls back to another silently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.install import how_to_install
from exporter.runners.base import Arrays, Closing, check_inputs

if TYPE_CHECKING:  # an edge image runs files, and has no onnx
    import onnx

_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", {}),
    # Otherwise the tensor cores compute fp32 in TF32.
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


def available_devices() -> tuple[str, ...]:
    """List the devices of this installation of ONNX Runtime, `cpu` first.

    Raises:
        RuntimeFailure: if ONNX Runtime is not installed.
    """
    providers = _import_onnxruntime().get_available_providers()
    return tuple(device for device, (name, _) in _PROVIDERS.items() if name in providers)


class OnnxRuntimeRunner(Closing):
    """One session of ONNX Runtime.

    Args:
        graph: The ONNX file, or a model in memory.
        device: `cpu` or `cuda`.
        threads: Threads of one run.
        precision: The precision of the graph, for the report.

    Raises:
        RuntimeFailure: if the graph does not load on the given device.
    """

    name = "onnxruntime"
    transfers_included = True

    def __init__(
        self,
        graph: Path | onnx.ModelProto,
        device: str = "cpu",
        *,
        threads: int = 1,
        precision: str = "fp32",
    ) -> None:
        session = _open_session(graph, device, threads)
        self.device = device
        self.precision = precision
        self.threads = threads
        self.input_shapes: Mapping[str, tuple[int | None, ...]] = {
            value.name: tuple(dim if isinstance(dim, int) else None for dim in value.shape)
            for value in session.get_inputs()
        }
        self._graph = graph
        self._session: Any = session

    def use_threads(self, threads: int) -> None:
        """Change the number of threads of all later runs."""
        if threads != self.threads:
            self._session = None  # free the old session first: memory may not hold two
            self._session = _open_session(self._graph, self.device, threads)
            self.threads = threads

    def close(self) -> None:  # noqa: D102
        del self._session

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute `logits` `(b, classes)` of `video` `(b, f, c, h, w)`."""
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
    options.optimized_model_filepath = str(out)
    aside = "session.optimized_model_external_initializers_file_name"
    options.add_session_config_entry(aside, "weights")
    try:
        onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes share no public base
        raise RuntimeFailure(f"ONNX Runtime does not load {graph.name}: {error}") from error


def _open_session(graph: Path | onnx.ModelProto, device: str, threads: int) -> Any:  # noqa: ANN401
    onnxruntime = _import_onnxruntime()
    provider, settings = _PROVIDERS[device]
    what = graph.name if isinstance(graph, Path) else "the graph"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # 3 prints errors, which are raised anyway
    try:
        source = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
        session = onnxruntime.InferenceSession(source, options, providers=[(provider, settings)])
    except Exception as error:  # its exception classes share no public base
        raise RuntimeFailure(f"ONNX Runtime does not load {what}: {error}") from error
    if session.get_providers()[0] != provider:
        raise RuntimeFailure(
            f"ONNX Runtime fell back to another device for {what}",
            got=session.get_providers()[0],
            expected=provider,
            remedy="see tsformer doctor for what is missing",
        )
    return session


def _import_onnxruntime() -> Any:  # noqa: ANN401  # a module
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeFailure(
            f"ONNX Runtime cannot be imported ({error}), and nothing is proven without it",
            remedy=how_to_install("onnxruntime"),
        ) from error
    return onnxruntime
