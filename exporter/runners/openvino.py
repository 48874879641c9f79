"""OpenVINO on the CPU, in the precision that is asked for: it never computes in another one.

OpenVINO takes a hint of a precision that the CPU lacks, and then computes in float32 without a
word. Its default may be lower than float32. So the precision is always set, and checked twice:
before, against the precisions that OpenVINO names for this CPU; after, against the kernels of the
compiled model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.errors.install import how_to_install
from exporter.runners.base import Arrays, Closing, check_inputs

if TYPE_CHECKING:
    from openvino import CompiledModel, ConstOutput, InferRequest

WITH_BF16 = "openvino-bf16"  # the name of a runner of int8 products with bf16 between them
CAPABILITIES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16", "int8": "INT8"}
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention")
_LOW = {"f16", "bf16"}  # types of kernels


def is_installed() -> bool:
    """Tell whether OpenVINO is installed, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def precisions() -> tuple[str, ...]:
    """List the precisions that OpenVINO names for this CPU.

    Raises:
        RuntimeFailure: if OpenVINO cannot be imported.
    """
    names = _import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(precision for precision, name in CAPABILITIES.items() if name in names)


def require_precision(precision: str, rest: str = "fp32", keep_fp32: Collection[str] = ()) -> None:
    """Raise `RuntimeFailure` unless OpenVINO computes so on this CPU; see `OpenVinoRunner`."""
    lowered = rest if precision == "int8" else precision
    if keep_fp32 and lowered != "fp32":
        raise RuntimeFailure(
            f"OpenVINO computes a whole graph in {lowered}, and --keep-fp32 names modules of it"
        )
    offered, wanted = precisions(), {precision, lowered}
    if lacking := wanted - {*offered}:
        raise RuntimeFailure(
            f"OpenVINO has no {', '.join(sorted(lacking))} on this CPU, and would use float32",
            got=", ".join(offered),
            expected=", ".join(sorted(wanted)),
        )


class OpenVinoRunner(Closing):
    """One compiled model of OpenVINO on the CPU.

    Args:
        graph: The ONNX file, with float32 values; for `int8`, with int8 products.
        precision: The precision to compute in: `fp32`, `fp16`, `bf16` or `int8`.
        threads: Threads of one run.
        rest: For `int8`, the precision of what is between the products: `fp32` or `bf16`. With
            `bf16` the runner has the name `WITH_BF16`.
        keep_fp32: The modules that the export keeps in float32, which OpenVINO cannot do in a lower
            precision.
        cache: A folder that keeps the compiled model, so that it loads faster the next time.

    Raises:
        RuntimeFailure: if OpenVINO is not installed, does not load the graph, or would compute in
            another precision.
    """

    name = "openvino"
    device = "cpu"
    transfers_included = True

    def __init__(
        self,
        graph: Path,
        precision: str = "fp32",
        *,
        threads: int = 1,
        rest: str = "fp32",
        keep_fp32: Collection[str] = (),
        cache: Path | None = None,
    ) -> None:
        self.precision = precision
        self.threads = threads
        self._graph = graph
        self._hint = _HINTS[rest if precision == "int8" else precision]
        self._cache = cache
        if precision == "int8" and rest == "bf16":
            self.name = WITH_BF16
        require_precision(precision, rest, keep_fp32)
        self._request: InferRequest | None = self._open()
        inputs = self._request.get_compiled_model().inputs
        self._dtypes = {port.any_name: str(port.element_type.to_dtype()) for port in inputs}
        self.input_shapes: Mapping[str, tuple[int | None, ...]] = {
            port.any_name: tuple(
                None if dim.is_dynamic else dim.get_length() for dim in port.partial_shape
            )
            for port in inputs
        }

    def use_threads(self, threads: int) -> None:
        """Change the number of threads of all later runs."""
        if threads != self.threads:
            self.threads = threads
            self._request = None  # free the old model first: memory may not hold two
            self._request = self._open()

    def close(self) -> None:  # noqa: D102
        self._request = None

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute `logits` `(b, classes)` of `video` `(b, f, c, h, w)`."""
        if self._request is None:
            raise RuntimeFailure(f"{self.name}: the runner is closed")
        check_inputs(self, inputs, self._dtypes)  # OpenVINO converts other types by itself
        try:
            outputs = self._request.infer(dict(inputs), share_inputs=True)
        except Exception as error:  # RuntimeError, and classes of pybind11
            raise RuntimeFailure(f"OpenVINO failed: {_reason(error)}") from error
        return {_output_name(port): array for port, array in outputs.items()}

    def _open(self) -> InferRequest:
        openvino = _import_openvino()
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # A pinned thread waits for whatever else uses its core.
            "ENABLE_CPU_PINNING": False,
            # Else weights that are stored in int8 may make it round activations that stay float32.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        if self._cache is not None:
            settings["CACHE_DIR"] = str(self._cache)
        try:
            model = openvino.Core().compile_model(str(self._graph), "CPU", settings)
            _check_kernels(model, self.precision, self._hint)
            return model.create_infer_request()
        except RuntimeFailure:
            raise
        except Exception as error:  # RuntimeError, and classes of pybind11
            raise RuntimeFailure(
                f"OpenVINO does not load {self._graph.name}: {_reason(error)}"
            ) from error


def _check_kernels(model: CompiledModel, precision: str, hint: str) -> None:
    """Raise unless the products of a compiled model have the precision that was asked for."""
    followed = model.get_property("INFERENCE_PRECISION_HINT").get_type_name() == hint
    types = product_types(model)
    wanted = {"int8": {"i8", "u8"}, "fp16": {"f16"}, "bf16": {"bf16"}}.get(precision, {"f32"})
    if not followed or types & _LOW - {hint} or not types & wanted:
        raise RuntimeFailure(
            "OpenVINO does not compute in the precision that was asked for",
            got=f"products in {', '.join(sorted(types)) or 'no type'}",
            expected=precision,
        )


def product_types(model: CompiledModel) -> set[str]:
    """Return the types that the products of a compiled model compute in, as OpenVINO calls them."""
    facts = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    return {_fact(f, "runtimePrecision") for f in facts if _fact(f, "layerType") in _PRODUCTS}


def _output_name(port: ConstOutput) -> str:
    """Return the name of an output in the graph; OpenVINO adds names of inner values to it."""
    name = port.get_node().get_friendly_name().partition("/sink_port_")[0]
    return name if name in port.get_names() else port.any_name


def _fact(facts: Any, name: str) -> str:  # noqa: ANN401  # a map of OpenVINO
    found = facts[name]
    return str(getattr(found, "value", found))


def _reason(error: Exception) -> str:
    """Take the words of an error of OpenVINO, without the places in its source."""
    lines = [line for line in str(error).splitlines() if not line.startswith("Exception from")]
    return " ".join(" ".join(lines).split())[:300]


def _import_openvino() -> Any:  # noqa: ANN401  # a module
    try:
        import openvino
    except ImportError as error:
        raise RuntimeFailure(
            f"OpenVINO cannot be imported ({error})", remedy=how_to_install("openvino")
        ) from error
    return openvino
