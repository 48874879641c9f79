"""Load one graph in one runtime and say whether it takes the graph: a process of its own.

A native loader may crash, hang, or take any memory on a hostile graph, so `ask` runs this file as a
child. It prints one line of JSON: `runtime`, its `version`, and `refused`, the reason or "".
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from exporter.errors import RuntimeFailure
from exporter.runners.onnxruntime import OnnxRuntimeRunner, onnxruntime_version
from exporter.to_engine.native import BuildFailure, Native, load_tensorrt, make_logger

_TENSORRT = ("tensorrt_rtx", "tensorrt")
_MEMORY = 2**31  # beside eight times the file: what an honest loader needs


def open_in_onnxruntime(path: Path) -> tuple[str, str]:
    """Open a session on the CPU; return the name of the runtime, and why it refuses, or ""."""
    name = f"ONNX Runtime {onnxruntime_version()} on a CPU"
    try:
        OnnxRuntimeRunner(path).close()
    except RuntimeFailure as error:
        return name, str(error)
    return name, ""


def parse_in_tensorrt(path: Path) -> tuple[str, str]:
    """Parse the file; return the name of the parser, and why it refuses, or "".

    Raises:
        BuildFailure: if no TensorRT is here.
    """
    failure: BuildFailure | None = None
    for module in _TENSORRT:
        try:
            trt = load_tensorrt(module)
            logger = make_logger(trt, lambda _severity, _text: None)
            builder = trt.Builder(logger)
        except (BuildFailure, TypeError) as error:  # TypeError: `tensorrt` without a GPU
            failure = failure or BuildFailure(str(error))
            continue
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse_from_file(str(path))
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        reason = "; ".join(errors) or "no reason given"
        name = f"{module} {trt.__version__}"
        if not parsed or errors:
            return name, reason
        return name, _build_attention(trt, builder, network)
    raise failure or BuildFailure("no TensorRT is here")


def _build_attention(trt: Native, builder: Native, network: Native) -> str:
    """Build a network with attention: the parser takes any, the builder some. Return its refusal.

    Free axes are 1.
    """
    layers = (network.get_layer(i) for i in range(network.num_layers))
    if not any("ATTENTION" in str(layer.type) for layer in layers):
        return ""
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for free in (each for each in inputs if -1 in tuple(each.shape)):
        profile.set_shape(free.name, *[[max(1, axis) for axis in free.shape]] * 3)
    config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    return "" if built is not None else "the builder has no kernel for its Attention"


LOADERS: Mapping[str, Callable[[Path], tuple[str, str]]] = {
    "onnxruntime": open_in_onnxruntime,
    "tensorrt": parse_in_tensorrt,
}


def _limit_memory(path: Path) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        most = _MEMORY + 8 * path.stat().st_size
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def main() -> None:
    """Answer the request in the arguments: a runtime and a path."""
    runtime, path = sys.argv[1], Path(sys.argv[2])
    _limit_memory(path)
    answers = os.dup(1)
    os.dup2(2, 1)  # native libraries print to stdout
    try:
        version, refused = LOADERS[runtime](path)
    except (BuildFailure, RuntimeFailure, ImportError):
        return  # it is not installed: no answer
    with os.fdopen(answers, "w") as stream:
        json.dump({"version": version, "refused": " ".join(refused.split())}, stream)


if __name__ == "__main__":
    main()
