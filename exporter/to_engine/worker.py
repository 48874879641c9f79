"""The process that builds one engine: request on stdin, JSON lines on stdout, EOF cancels.

Every build has a separate process for three reasons. TensorRT can crash natively. TensorRT prints
to the terminal. A failed build was observed to change the next build of the same process.
`process.py` starts the worker. The worker imports neither torch nor the caller's script.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

from exporter.files.child import die_with, end_after_grace, wait_for_end_of_input
from exporter.to_engine.kernels import MARK, Layer, parse_layers
from exporter.to_engine.native import BuildFailure, Native, load_tensorrt, make_logger

KEPT_MESSAGES = 10
# Other names of types are only converted to lower case.
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


class Channel:
    """Sends JSON lines to the parent. `cancelled` is set when the parent has closed its end."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._lock = threading.Lock()  # TensorRT may call back from several threads
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # output of native code goes to stderr, not into the protocol

    def send(self, kind: str, **fields: object) -> None:
        """Send one message. Never raise, because TensorRT's callbacks must not raise."""
        try:
            with self._lock:
                self._out.write(json.dumps({"kind": kind, **fields}).encode() + b"\n")
                self._out.flush()
        except OSError:  # the parent has ended, so the engine is not needed
            self.cancelled.set()


def make_monitor(trt: Native, channel: Channel) -> Native:
    """Return a progress monitor that reports to the parent and stops a cancelled build."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            channel.send("start", name=phase_name, parent=parent_phase, steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            channel.send("step", name=phase_name, step=step)
            return not channel.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            channel.send("finish", name=phase_name)

    return Monitor()


class Build:
    """The build of one engine. The methods are in the order in which `run` calls them."""

    def __init__(self, channel: Channel, module: str) -> None:
        self.channel = channel
        self.messages: list[tuple[str, str]] = []
        self.layers: tuple[Layer, ...] = ()
        self.trt = trt = load_tensorrt(module)
        self.logger = make_logger(trt, self._log, self._note_layers)
        try:
            self.builder = trt.Builder(self.logger)
        except TypeError as error:  # the native factory returned nullptr: `tensorrt` without a GPU
            raise BuildFailure(f"{module} cannot create a builder", got=error) from error
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        # Without the flag, TensorRT 11 builds strongly typed networks only, so 0 is correct.
        flags = 0 if typed is None else 1 << int(typed)
        self.network = self._require(self.builder.create_network(flags), "a network")
        self.config = self._require(self.builder.create_builder_config(), "a configuration")

    def run(
        self, onnx: str, engine: str, profile: list[int] | None, targets: list[str]
    ) -> dict[str, object]:
        """Build and write the engine; return the fields of `EngineInfo` that the worker knows."""
        begin, network = time.monotonic(), self.network
        parser = self._parse(onnx)
        self._disable_tf32()
        self.config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED  # see `kernels`
        shapes = self._set_profile(profile)
        self._set_targets(targets)
        monitor = make_monitor(self.trt, self.channel)
        self.config.progress_monitor = monitor
        serialized = self.builder.build_serialized_network(network, self.config)
        del parser, monitor  # the build needs both: they own the weights and the callbacks
        warnings = self._logged("WARNING", "ERROR", "INTERNAL_ERROR")
        Path(engine).write_bytes(self._checked(serialized))
        return {
            "targets": self._read_targets(),
            "inputs": [{**_describe(t), "profile": shapes.get(t.name)} for t in self._inputs()],
            "outputs": [_describe(network.get_output(i)) for i in range(network.num_outputs)],
            "layers": network.num_layers,
            "steps": [asdict(layer) for layer in self.layers],
            "seconds": time.monotonic() - begin,
            "peak_memory_mb": _peak_memory_mb(),
            "warnings": warnings[:KEPT_MESSAGES],
        }

    def _parse(self, onnx: str) -> Native:
        parser = self.trt.OnnxParser(self.network, self.logger)
        parsed = parser.parse_from_file(onnx)
        # Convert errors to text now: a ParserError must not be read after its parser is freed.
        errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        if not parsed or errors:
            reason = "; ".join(errors) or self._reason()
            raise BuildFailure("TensorRT's parser refused the graph", got=reason)
        network = self.network
        counts = network.num_inputs, network.num_layers, network.num_outputs
        if not all(counts):  # the parser reports success in this case too
            raise BuildFailure("TensorRT found no inputs, layers or outputs", got=counts)
        return parser

    def _disable_tf32(self) -> None:
        flag = getattr(self.trt.BuilderFlag, "TF32", None)
        if flag is not None:
            self.config.clear_flag(flag)  # TF32 is on by default: "float32" with 10 mantissa bits
            if self.config.get_flag(flag):
                raise BuildFailure("TensorRT did not switch TF32 off")

    def _set_profile(self, sizes: list[int] | None) -> dict[str, list[list[int]]]:
        """Set the batch sizes of each dynamic input; read back and return its three shapes."""
        shapes = {tensor.name: tuple(tensor.shape) for tensor in self._inputs()}
        dynamic = {name: shape for name, shape in shapes.items() if -1 in shape}
        if any(-1 in shape[1:] for shape in dynamic.values()):
            raise BuildFailure("only the batch of an input may be dynamic", got=dynamic)
        if bool(dynamic) != bool(sizes):
            given = f"batch sizes {sizes}" if sizes else "no batch sizes"
            raise BuildFailure(
                f"the batch of the graph is {'dynamic' if dynamic else 'static'}",
                got=f"{given} for inputs {shapes}",
                remedy="export and build with the same --dynamic-batch MIN:OPT:MAX, or without it",
            )
        if not sizes:
            return {}
        profile = self._require(self.builder.create_optimization_profile(), "a profile")
        for name, shape in dynamic.items():
            profile.set_shape(name, *[(size, *shape[1:]) for size in sizes])
        if self.config.add_optimization_profile(profile) < 0:
            raise BuildFailure("TensorRT refused the batch sizes", got=sizes)
        return {name: list(map(list, profile.get_shape(name))) for name in dynamic}

    def _set_targets(self, targets: list[str]) -> None:
        if not targets:
            return
        members = self.trt.ComputeCapability.__members__.items()
        known = {name.lower(): value for name, value in members if name.startswith("SM")}
        self.config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if target not in known:
                names = f"one of {', '.join(known)}"
                raise BuildFailure("unknown engine target", got=target, expected=names)
            if not self.config.set_compute_capability(known[target], index):
                raise BuildFailure(f"TensorRT refused the target {target}", got=self._reason())

    def _checked(self, serialized: Native) -> memoryview:
        if self.channel.cancelled.is_set():
            raise BuildFailure("the build was cancelled")
        if serialized is None:
            raise BuildFailure("TensorRT could not build the engine", got=self._reason())
        data = memoryview(serialized)  # a copy would double the peak of a large engine
        runtime = self.trt.Runtime(self.logger)
        if hasattr(runtime, "get_engine_validity"):
            # Without a GPU the verdict is always INVALID. This bit concerns only the bytes.
            malformed = int(self.trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
            if int(runtime.get_engine_validity(data)[1]) & malformed:
                raise BuildFailure("TensorRT built an engine that it reports as malformed")
        return data

    def _read_targets(self) -> list[str]:
        count = getattr(self.config, "num_compute_capabilities", 0)
        return [self.config.get_compute_capability(i).name.lower() for i in range(count)]

    def _inputs(self) -> list[Native]:
        return [self.network.get_input(i) for i in range(self.network.num_inputs)]

    def _log(self, severity: str, text: str) -> None:
        self.messages.append((severity, text))
        self.channel.send("log", severity=severity, text=text)

    def _note_layers(self, text: str) -> None:
        if text.startswith(MARK):
            self.layers = parse_layers(text)

    def _logged(self, *severities: str) -> list[str]:
        return list(dict.fromkeys(text for kind, text in self.messages if kind in severities))

    def _reason(self) -> str:
        return "; ".join(self._logged("ERROR", "INTERNAL_ERROR")[:3]) or "no reason given"

    def _require(self, thing: Native, what: str) -> Native:
        if thing is None:
            raise BuildFailure(f"TensorRT could not create {what}", got=self._reason())
        return thing


def examine(module: str, engine: str) -> dict[str, object]:
    """Return the names of TensorRT's objections to an engine on this machine, by its header.

    Raises:
        BuildFailure: if this version of TensorRT cannot check a header.
    """
    trt = load_tensorrt(module)
    runtime = trt.Runtime(make_logger(trt, lambda _severity, _text: None))
    if not hasattr(runtime, "get_engine_validity"):
        raise BuildFailure(f"{module} {trt.__version__} cannot check an engine without loading it")
    diagnostics = int(runtime.get_engine_validity(Path(engine).read_bytes())[1])
    kinds = trt.EngineInvalidityDiagnostics.__members__.items()
    found = [name.lower() for name, kind in kinds if int(kind) & diagnostics]
    return {"version": str(trt.__version__), "objections": found}


def _describe(tensor: Native) -> dict[str, object]:
    shape = [None if size == -1 else size for size in tensor.shape]
    dtype = DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower())
    return {"name": tensor.name, "shape": shape, "dtype": dtype}


def _parser_error(error: Native) -> str:
    node = f"node {error.node_name() or error.node()} ({error.node_operator()}): "
    return f"{node if error.node() >= 0 else ''}{error.desc()} [{error.code().name}]"


def _peak_memory_mb() -> float | None:
    """Return the peak memory (MiB) of this process alone.

    `getrusage` would also count the pages that the parent had before `exec`.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else None


def _watch(channel: Channel) -> None:
    """Cancel the build on EOF, and end the process if the build does not stop."""
    wait_for_end_of_input()
    channel.cancelled.set()
    end_after_grace()


def main() -> None:
    """Serve the request on stdin: build an engine, examine an engine, or only send the version."""
    # Ctrl-C reaches the whole process group, and the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel()
    with os.fdopen(0, "rb", buffering=0, closefd=False) as stdin:
        request = json.loads(stdin.readline())
    die_with(request.pop("parent"))
    threading.Thread(target=_watch, args=(channel,), daemon=True).start()
    try:
        if "examine" in request:
            answer = examine(request["module"], request["examine"])
        else:
            build = Build(channel, request.pop("module"))  # a successful import does not prove much
            answer = {"version": str(build.trt.__version__)}
            answer |= build.run(**request) if request else {}
    except BuildFailure as failure:
        channel.send("failed", **failure.facts)
    except Exception as error:  # anything else must reach the user as well
        channel.send("failed", what="the build failed", got=f"{type(error).__name__}: {error}")
    else:
        channel.send("done", **answer)


if __name__ == "__main__":
    main()
