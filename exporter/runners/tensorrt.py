"""A TensorRT engine as a runner; its buffers are CUDA memory of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.runners.base import Arrays, Closing, check_inputs
from exporter.runners.cuda import require_gpu
from exporter.to_engine.build import FLAVOURS
from exporter.to_engine.native import BuildFailure, load_tensorrt, make_logger

NOT_EXECUTED = "the engine is built, but can be executed only on a GPU that it was built for"
NUMPY_DTYPES = {
    "BOOL": "bool",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
}
KEPT_MESSAGES = 3


class TensorRtRunner(Closing):
    """Runs one engine on one GPU, on its own stream; times include both transfers.

    Args:
        engine_path: The file that `build_engine` wrote.
        flavour: The flavour that built it: a key of `FLAVOURS`.
        precision: Precision of the graph, for the report.

    Raises:
        RuntimeFailure: if there is no GPU, or TensorRT cannot load the engine on the GPU.
    """

    threads = 1
    transfers_included = True

    def __init__(self, engine_path: Path, flavour: str, precision: str = "fp32") -> None:
        import torch

        self.name = FLAVOURS[flavour].module
        self.precision = precision
        self._device = _cuda_device(self.name)
        self.device = f"{self._device} {torch.cuda.get_device_name(self._device)}"
        self._complaints: list[str] = []
        self._load(engine_path)
        self._stream = torch.cuda.Stream(self._device)
        modes = {name: self._engine.get_tensor_mode(name) for name in self._tensor_names()}
        self._inputs = [name for name, mode in modes.items() if mode.name == "INPUT"]
        self._outputs = [name for name, mode in modes.items() if mode.name == "OUTPUT"]
        self.input_shapes: Mapping[str, tuple[int | None, ...]] = {
            name: tuple(
                None if size == -1 else size for size in self._engine.get_tensor_shape(name)
            )
            for name in self._inputs
        }

    def close(self) -> None:  # noqa: D102
        # In this order: each object must be freed before the next, which made it.
        self._context = self._engine = self._runtime = self._logger = None

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run the engine once; names, shapes and dtypes must be those of the engine."""
        check_inputs(self, inputs)
        if self._context is None:
            raise RuntimeFailure(f"{self.name}: the runner is closed")
        try:
            return self._execute(inputs)
        except RuntimeError as error:  # torch's: out of memory, or a fault of the GPU
            raise RuntimeFailure(f"{self.name}: execution failed", got=error) from error

    def _execute(self, inputs: Arrays) -> dict[str, np.ndarray]:
        import torch

        with torch.cuda.stream(self._stream):
            # Keep both dictionaries to the end: TensorRT knows only the addresses in them.
            given = {name: self._bind_input(name, inputs[name]) for name in self._inputs}
            results = {name: self._bind_output(name) for name in self._outputs}
            started = self._context.execute_async_v3(self._stream.cuda_stream)
            self._stream.synchronize()
            del given
            self._require(started, "execution failed")
            return {name: result.cpu().numpy() for name, result in results.items()}

    def _load(self, path: Path) -> None:
        try:
            trt = load_tensorrt(self.name)
        except BuildFailure as failure:
            raise RuntimeFailure(f"{NOT_EXECUTED}: {failure.facts['what']}") from failure
        self._logger = make_logger(trt, self._log)
        try:
            self._runtime = trt.Runtime(self._logger)
            self._engine: Any = self._runtime.deserialize_cuda_engine(path.read_bytes())
        except (OSError, TypeError) as error:  # TypeError: the native factory gave nullptr
            raise RuntimeFailure(f"{self.name}: cannot load {path}", got=error) from error
        self._require(self._engine is not None, f"cannot load {path}; {NOT_EXECUTED}")
        self._context: Any = self._engine.create_execution_context()
        self._require(self._context is not None, "cannot create an execution context")

    def _tensor_names(self) -> list[str]:
        return [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]

    def _bind_input(self, name: str, array: np.ndarray) -> Any:  # noqa: ANN401  # torch.Tensor
        import torch

        dtype = self._dtype(name)
        if array.dtype != dtype:
            raise RuntimeFailure(
                f"{self.name}: wrong dtype of {name!r}", got=array.dtype, expected=dtype
            )
        # "W" copies a read-only array; torch warns about one.
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self._device)
        if not self._context.set_input_shape(name, tuple(array.shape)):
            accepted = [tuple(s) for s in self._engine.get_tensor_profile_shape(name, 0)]
            raise RuntimeFailure(
                f"{self.name}: {name!r} is outside the engine's profile",
                got=array.shape,
                expected=f"{accepted[0]} to {accepted[-1]}",
            )
        self._bind(name, tensor)
        return tensor

    def _bind_output(self, name: str) -> Any:  # noqa: ANN401  # torch.Tensor
        import torch

        shape = tuple(self._context.get_tensor_shape(name))
        self._require(-1 not in shape, f"the shape of {name!r} is unknown: {shape}")
        dtype = getattr(torch, self._dtype(name))
        tensor = torch.empty(shape, dtype=dtype, device=self._device)
        self._bind(name, tensor)
        return tensor

    def _bind(self, name: str, tensor: Any) -> None:  # noqa: ANN401  # torch.Tensor
        bound = self._context.set_tensor_address(name, tensor.data_ptr())
        self._require(bound, f"cannot bind {name!r}")

    def _dtype(self, name: str) -> str:
        dtype = self._engine.get_tensor_dtype(name).name
        self._require(dtype in NUMPY_DTYPES, f"{name!r} is {dtype}, which numpy does not have")
        return NUMPY_DTYPES[dtype]

    def _log(self, severity: str, text: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._complaints = [*self._complaints, text][-KEPT_MESSAGES:]

    def _require(self, success: bool, what: str) -> None:
        """Raise with the last messages of TensorRT unless a call succeeded; it raises nothing."""
        if not success:
            raise RuntimeFailure(f"{self.name}: {what}", got="; ".join(self._complaints) or None)


def _cuda_device(name: str) -> Any:  # noqa: ANN401  # torch.device
    import torch

    require_gpu(f"{name}: {NOT_EXECUTED}")
    return torch.device("cuda", torch.cuda.current_device())
