"""Files of an export -> the runners that can run them here, and the rows that say what cannot."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from exporter.errors import RuntimeFailure
from exporter.results import Parity
from exporter.runners.base import Runner
from exporter.runners.onnxruntime import OnnxRuntimeRunner, available_devices
from exporter.runners.reference import EVALUATED, ReferenceRunner
from exporter.runners.tensorrt import TensorRtRunner
from exporter.to_engine.build import FLAVOUR_OF_MODULE

# Runtimes that nobody deploys: they are judged, not timed.
FOR_PROOF_ONLY = (ReferenceRunner.name, "onnxruntime-symmetric")


def load_onnx(path: Path, precision: str, runners: ExitStack) -> tuple[list[Runner], list[Parity]]:
    """What can run the graph here, and the parity rows that say what cannot.

    ONNX Runtime takes every device it can use; a float32 graph that does not load is an error. A
    graph of lower precision also goes to the evaluator that really computes in it.
    """
    devices = [d for d in available_devices() if d == "cpu" or torch.cuda.is_available()]
    threads = torch.get_num_threads()
    found: list[Runner] = []
    absences = []
    for device in devices:
        try:
            session = OnnxRuntimeRunner(path, device, threads=threads, precision=precision)
        except RuntimeFailure as error:
            if precision == "fp32":
                raise
            absences.append(Parity("onnxruntime", device, precision, "not-run", reason=str(error)))
        else:
            found.append(runners.enter_context(session))
    if precision in EVALUATED:
        found.append(runners.enter_context(ReferenceRunner(path, precision)))
    return found, absences


def load_symmetric(path: Path, precision: str, resources: ExitStack) -> Runner:
    """The graph that the engine is built from, which a CPU can run too."""
    session = OnnxRuntimeRunner(path, threads=torch.get_num_threads(), precision=precision)
    session.name = "onnxruntime-symmetric"
    return resources.enter_context(session)


def load_engine(
    module: str | None, path: Path, precision: str, runners: ExitStack
) -> tuple[Runner | None, Parity | None]:
    """A runner of an engine built by `module`, or the parity row that says why there is none."""
    if module is None:
        return None, None
    if not torch.cuda.is_available():
        reason = "this machine has no NVIDIA GPU to execute the engine"
        return None, Parity(module, "none", precision, "not-run", reason=reason)
    try:
        engine = TensorRtRunner(path, FLAVOUR_OF_MODULE[module], precision)
        return runners.enter_context(engine), None
    except RuntimeFailure as error:
        return None, Parity(module, "cuda", precision, "not-run", reason=str(error))
