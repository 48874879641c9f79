"""A TensorRT engine that is loaded on the GPU: its tensors and its execution contexts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from exporter.errors import RuntimeFailure
from exporter.runners.base import Closing
from exporter.to_engine.native import BuildFailure, Native, load_tensorrt, make_logger

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


class Engine(Closing):
    """One engine; every call of TensorRT that fails raises with its last messages.

    Args:
        path: The file that `build_engine` wrote.
        module: The package that built it: `tensorrt` or `tensorrt_rtx`.

    Raises:
        RuntimeFailure: if TensorRT is not installed or cannot load the engine on this GPU.
    """

    def __init__(self, path: Path, module: str) -> None:
        self.name = module
        self._complaints: list[str] = []
        self._engine: Native = None
        self._runtime: Native = None
        try:
            self._trt = load_tensorrt(module)
        except BuildFailure as failure:
            raise RuntimeFailure(f"{NOT_EXECUTED}: {failure.facts['what']}") from failure
        self._logger = make_logger(self._trt, self._log)
        try:
            self._runtime = self._trt.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        except (OSError, TypeError) as error:  # TypeError: the native factory gave nullptr
            raise RuntimeFailure(f"{module}: cannot load {path}", got=error) from error
        self.require(self._engine is not None, f"cannot load {path}; {NOT_EXECUTED}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name).name for name in names}
        self.inputs = [name for name in names if modes[name] == "INPUT"]
        self.outputs = [name for name in names if modes[name] == "OUTPUT"]
        self.dtypes = {name: self._dtype(name) for name in names}

    @property
    def input_shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """The shapes of the inputs, with `None` for a free batch."""
        return {
            name: tuple(
                None if size == -1 else size for size in self._engine.get_tensor_shape(name)
            )
            for name in self.inputs
        }

    def profile(self, name: str) -> str:
        """The smallest and the largest shape of an input, in words."""
        shapes = [tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, 0)]
        return f"{shapes[0]} to {shapes[-1]}"

    @property
    def captures_by_itself(self) -> bool:
        """Whether this TensorRT captures CUDA graphs when it is told to: TensorRT-RTX does."""
        return hasattr(self._trt, "CudaGraphStrategy")

    def new_context(self, *, graph: bool) -> Native:
        """Make an execution context; `graph` is for a TensorRT that captures by itself."""
        settings = [self._runtime_config(graph=graph)] if self.captures_by_itself else []
        context = self._engine.create_execution_context(*settings)
        self.require(context is not None, "cannot create an execution context")
        return context

    def _runtime_config(self, *, graph: bool) -> Native:
        config, trt = self._engine.create_runtime_config(), self._trt
        # By default other kernels run first while these are compiled: a proof must hold for those
        # that run later.
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        strategies = trt.CudaGraphStrategy
        chosen = strategies.WHOLE_GRAPH_CAPTURE if graph else strategies.DISABLED
        config.cuda_graph_strategy = chosen
        self.require(config.cuda_graph_strategy == chosen, "cannot run as a CUDA graph")
        return config

    def require(self, success: bool, what: str) -> None:
        """Raise with the last messages of TensorRT unless a call succeeded; it raises nothing."""
        if not success:
            raise RuntimeFailure(f"{self.name}: {what}", got="; ".join(self._complaints) or None)

    def close(self) -> None:  # noqa: D102
        # In this order: each object must be freed before the next, which made it.
        self._engine = self._runtime = self._logger = None

    def _dtype(self, name: str) -> str:
        dtype = self._engine.get_tensor_dtype(name).name
        self.require(dtype in NUMPY_DTYPES, f"{name!r} is {dtype}, which numpy does not have")
        return NUMPY_DTYPES[dtype]

    def _log(self, severity: str, text: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._complaints = [*self._complaints, text][-KEPT_MESSAGES:]
