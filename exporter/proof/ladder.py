"""The error of a graph module by module, beside the rounding of eager PyTorch.

Every rung is a module of the model with its PyTorch path; rungs are in the order of computation.
The output of the candidate at a module is compared with that of the float64 model. The floor is the
same error of eager PyTorch in the precision of the graph. The fault is at the first rung above
`max(4 floor, tiny)`, the limit of parity for the logits, or at the first that is not finite.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from exporter.errors import LadderError, RuntimeFailure
from exporter.graph.modules import read_module_outputs
from exporter.inputs.clips import Inputs
from exporter.precision import Int8, in_precision
from exporter.proof.decide import FLOOR_FACTOR, TINY
from exporter.proof.distance import cosine, nan_is_worst, relative_error
from exporter.results import Ladder, Rung
from exporter.runners.base import Arrays, Runner
from exporter.runners.cuda import require_gpu
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.runners.open import EVALUATED
from exporter.runners.reference import ReferenceRunner
from exporter.runners.tensorrt import TensorRtRunner
from exporter.spec import BatchProfile
from exporter.to_engine.build import build_engine
from exporter.to_engine.flavours import choose_flavour
from model.classifier import VideoClassifier
from model.precision import Rounded

OBSERVED = ".observed"  # suffix of the extra outputs of an engine


def climb(
    model: VideoClassifier,
    graph: Path,
    inputs: Inputs,
    *,
    precision: str,
    batch: int = 1,
    keep_fp32: Sequence[str] = (),
    int8: Int8 | None = None,
    engine: bool = False,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> Ladder:
    """Compare a graph with its model, module by module.

    Args:
        model: The model that was exported.
        graph: The ONNX file.
        inputs: The clips to compare on; figures are the worst over them.
        precision: The precision of the graph.
        batch: Clips per run of the graph.
        keep_fp32: Regular expressions over the paths of modules that stay in float32.
        int8: How an int8 graph rounds.
        engine: Run the graph in TensorRT on the GPU instead of a runtime of the CPU.
        on_clip: Called with the number of clips done, and of all.

    Raises:
        LadderError: if the graph does not name its modules.
        RuntimeFailure: if no runtime of this machine can run the graph.
    """
    try:
        proto = onnx.load(graph)
    except (OSError, DecodeError) as error:
        raise LadderError(f"{graph.name} cannot be read: {error}") from error
    names = read_module_outputs(proto)
    if not any(names.values()):
        raise LadderError(
            f"{graph.name} does not say which values are outputs of which modules",
            remedy="export it again with this version of tsformer",
        )
    names = {path: names[path] for path in _rungs(model) if names.get(path)}
    wanted = [*dict.fromkeys(itertools.chain(*names.values()))]
    truth, floor = (in_precision(model, p, keep_fp32, int8) for p in ("fp64", precision))
    worst: dict[str, Rung] = {}
    total = len(inputs.names)
    with ExitStack() as resources:
        if engine:
            runner = _observe_engine(proto, precision, wanted, batch, resources)
        else:
            runner = _observe(proto, precision, wanted, resources)
        for start in range(0, total, batch):
            clips = inputs.batch(batch, start)
            values = {k.removesuffix(OBSERVED): v for k, v in runner.run(clips).items()}
            expected, rounded = _capture(truth, clips, torch.float64), _capture(floor, clips)
            for path in (path for path in expected if path in names):
                found = _match(expected[path], [values[name] for name in names[path]])
                if found:
                    rung = _compare(path, expected[path], rounded[path], found)
                    worst[path] = _worse(worst.get(path, rung), rung)
            on_clip(min(start + batch, total), total)
    return _judge(runner, worst.values())


def _rungs(model: nn.Module) -> set[str]:
    """Find the modules that are rungs: those of lower precision, norms, blocks and the head."""
    modules = dict(model.named_modules())
    rounded = {path for path, module in modules.items() if isinstance(module, Rounded)}
    return {
        path
        for path, module in modules.items()
        if re.fullmatch(r"(blocks|layers)\.\d+", path)
        or path in rounded
        or (
            isinstance(module, (nn.LayerNorm, nn.Linear))
            and not any(path.startswith(f"{outer}.") for outer in rounded)
        )
    }


def _observe(
    proto: onnx.ModelProto, precision: str, names: Sequence[str], resources: ExitStack
) -> Runner:
    """Open a runtime of the CPU that computes in the precision and also gives the named values."""
    if precision in EVALUATED:
        return resources.enter_context(ReferenceRunner(proto, precision, every_value=True))
    outputs = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in outputs
    )
    threads = torch.get_num_threads()
    return resources.enter_context(OnnxRuntimeRunner(proto, threads=threads, precision=precision))


def _observe_engine(
    proto: onnx.ModelProto, precision: str, names: Sequence[str], batch: int, resources: ExitStack
) -> Runner:
    """Build and open an engine that also gives the named values, on the GPU of this machine.

    Raises:
        EngineError: if no TensorRT works here.
        RuntimeFailure: if there is no GPU.
    """
    require_gpu("ladder of an engine")
    choice = choose_flavour("auto", gpu=True)
    if choice.flavour is None:
        raise RuntimeFailure(f"no TensorRT works here: {choice.reason}")
    folder = Path(resources.enter_context(TemporaryDirectory()))
    add_outputs(proto, names)
    onnx.save(proto, folder / "observed.onnx")
    free = not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    build_engine(
        folder / "observed.onnx",
        folder / "observed.engine",
        flavour=choice.flavour,
        profile=BatchProfile(batch, batch, batch) if free else None,
    )
    runner = TensorRtRunner(folder / "observed.engine", choice.flavour, precision)
    return resources.enter_context(runner)


def add_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Add values of a graph to its outputs, in float32, named with the suffix `OBSERVED`."""
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    types = {
        value.name: value.type.tensor_type
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    for name in names:
        seen = name + OBSERVED
        proto.graph.node.append(
            onnx.helper.make_node("Cast", [name], [seen], to=onnx.TensorProto.FLOAT)
        )
        output = onnx.helper.make_tensor_value_info(seen, onnx.TensorProto.FLOAT, None)
        output.type.tensor_type.shape.CopyFrom(types[name].shape)
        proto.graph.output.append(output)


def _capture(
    model: VideoClassifier, clips: Arrays, dtype: torch.dtype = torch.float32
) -> dict[str, list[np.ndarray]]:
    """Collect the outputs of every module for the clips, call by call, in order of computation."""
    captured: dict[str, list[np.ndarray]] = {}

    def listener(path: str) -> Callable[[nn.Module, object, object], None]:
        def listen(_module: nn.Module, _arguments: object, output: object) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            arrays = [t.double().numpy() for t in tensors if isinstance(t, Tensor)]
            captured.setdefault(path, []).extend(arrays)

        return listen

    modules = [(path, module) for path, module in model.named_modules() if path]
    handles = [module.register_forward_hook(listener(path)) for path, module in modules]
    try:
        with torch.inference_mode():
            tensors = [torch.from_numpy(clip) for clip in clips.values()]
            model(*(t.to(dtype) if t.is_floating_point() else t for t in tensors))
    finally:
        for handle in handles:
            handle.remove()
    return captured


def _match(expected: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Assign the values that leave a module in the graph to its outputs: the last of equal size.

    A graph has no output that nothing reads, such as the patch tokens of the last block.
    """
    left, found = list(values), {}
    for place in reversed(range(len(expected))):
        same_size = [i for i, value in enumerate(left) if value.size == expected[place].size]
        if same_size:
            found[place] = left.pop(same_size[-1])
    return found


def _compare(
    path: str,
    expected: Sequence[np.ndarray],
    rounded: Sequence[np.ndarray],
    found: Mapping[int, np.ndarray],
) -> Rung:
    truth, floor, output = (
        np.concatenate([parts[place].astype(np.float64).ravel() for place in found])
        for parts in (expected, rounded, found)
    )
    return Rung(
        path,
        rel_l2=relative_error(output, truth),
        floor_rel_l2=relative_error(floor, truth),
        cosine=cosine(output, truth),
        max_abs=float(np.abs(output - truth).max()),
        finite=bool(np.isfinite(output).all()),
    )


def _worse(one: Rung, other: Rung) -> Rung:
    """Combine two rungs: the larger error, NaN being the largest, and the larger floor."""
    worse = max(one, other, key=lambda rung: nan_is_worst(rung.rel_l2))
    floor = float(np.fmax(one.floor_rel_l2, other.floor_rel_l2))
    return replace(worse, floor_rel_l2=floor, finite=one.finite and other.finite)


def _judge(runner: Runner, rungs: Iterable[Rung]) -> Ladder:
    """Mark the first rung above its limit, and the first that is not finite (pure)."""
    rungs = tuple(rungs)
    tiny = TINY[runner.precision]
    diverged = (
        rung.path
        for rung in rungs
        if not rung.finite  # also if eager PyTorch overflows too
        or not rung.rel_l2 <= max(FLOOR_FACTOR * rung.floor_rel_l2, tiny)  # NaN is above too
    )
    endless = (rung.path for rung in rungs if not rung.finite)
    return Ladder(
        runner.name, runner.device, runner.precision, rungs, next(diverged, ""), next(endless, "")
    )
