"""An exported directory -> the runtimes of this machine that can run its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from exporter.errors import RuntimeFailure
from exporter.files.manifest import (
    ENGINE,
    ENGINE_GRAPH,
    GRAPH,
    OPENVINO_GRAPH,
    openvino_graph,
)
from exporter.machine.cores import usable_cores
from exporter.predict import Card
from exporter.proof.structure import TARGETS_OF_GRAPHS, row_name
from exporter.results import Latency, Parity
from exporter.runners.cuda import look_for_gpu
from exporter.runners.onnxruntime import available_devices
from exporter.runners.open import (
    OPENVINO_GRAPH_RUN,
    TENSORRT_GRAPH_EVALUATED,
    TENSORRT_GRAPH_RUN,
    Opened,
    absent,
    is_openvino_wanted,
    load_engine,
    load_graphs,
    load_onnx,
    load_openvino,
)
from exporter.runners.openvino import WITH_BF16, OpenVinoRunner, is_installed
from exporter.spec import ExportSpec
from exporter.to_engine.flavours import FLAVOUR_OF_MODULE, FlavourChoice


def open_runtimes(
    directory: Path, manifest: Mapping[str, Any], resources: ExitStack, *, for_proof: bool
) -> Opened:
    """Open every runtime that can run a file of this directory here.

    A file that is not there gives a row with that reason. `for_proof` also opens the runtimes that
    nobody deploys.

    Raises:
        RuntimeFailure: if a float32 graph does not load, ONNX Runtime is missing, or `for_proof`
            this machine has a GPU, and ONNX Runtime cannot use it or the engine cannot be executed.
    """
    card = Card.of(directory, manifest)
    opened = _open_graphs(directory, manifest, card.precision, resources, for_proof=for_proof)
    if for_proof:
        _require_cuda(opened, card.precision)
    opened += _open_openvino(directory, manifest, card.precision, resources, for_proof=for_proof)
    if card.engine_module is None:
        return opened
    if not (directory / ENGINE).is_file():
        reason = f"{ENGINE} is not in the directory"
        return opened + absent(card.engine_module, "none", card.precision, reason)
    engine = load_engine(card.engine_module, directory / ENGINE, card.precision, resources)
    if for_proof and engine.absences and look_for_gpu().seen:
        raise RuntimeFailure(
            engine.absences[0].reason, remedy=f"build it for this GPU: tsformer build {directory}"
        )
    return opened + engine


def other_targets(spec: ExportSpec, choice: FlavourChoice) -> list[str]:
    """List the targets of an export beside ONNX Runtime: those that are named, or work here."""
    wanted = {
        "tensorrt": choice.flavour is not None or "tensorrt" in spec.runtimes,
        "openvino": is_openvino_wanted(spec.runtimes, spec.precision, spec.keep_fp32),
    }
    return [target for target, is_wanted in wanted.items() if is_wanted]


def open_for_openvino(
    spec: ExportSpec, graph: Path | None, shared: Path, resources: ExitStack, *, threads: int
) -> Opened:
    """Open the graph for OpenVINO of an export that was just made; it may share `model.onnx`."""
    return load_openvino(
        graph,
        spec.precision,
        resources,
        threads=threads,
        keep_fp32=spec.keep_fp32,
        named="openvino" in spec.runtimes,
        prove=graph != shared,
    )


def files_run(rows: Iterable[Parity | Latency], manifest: Mapping[str, Any]) -> dict[str, str]:
    """Say which file of an export each runtime of these rows runs."""
    others = {TENSORRT_GRAPH_RUN: ENGINE_GRAPH, TENSORRT_GRAPH_EVALUATED: ENGINE_GRAPH}
    if OPENVINO_GRAPH in manifest["files"]:
        names = (OpenVinoRunner.name, WITH_BF16, OPENVINO_GRAPH_RUN)
        others |= dict.fromkeys(names, OPENVINO_GRAPH)
    others |= dict.fromkeys(FLAVOUR_OF_MODULE, ENGINE)
    others |= {row_name(file): file for file in TARGETS_OF_GRAPHS}
    return {row.runtime: others.get(row.runtime, GRAPH) for row in rows}


def _open_graphs(
    directory: Path,
    manifest: Mapping[str, Any],
    precision: str,
    resources: ExitStack,
    *,
    for_proof: bool,
) -> Opened:
    graph, for_engine = directory / GRAPH, directory / ENGINE_GRAPH
    if not graph.is_file():
        return absent("onnxruntime", "cpu", precision, f"{GRAPH} is not in the directory")
    try:
        available_devices()
    except RuntimeFailure as error:
        others = is_installed() and _is_for_openvino(manifest, precision)
        if "flavour" not in manifest["engine"] and not others:
            raise
        return absent("onnxruntime", "cpu", precision, str(error))  # others may run without
    threads = usable_cores() or 1
    if not for_proof:
        return load_onnx(graph, precision, resources, threads=threads, evaluate=False)
    two = ENGINE_GRAPH in manifest["files"] and for_engine.is_file()
    return load_graphs(graph, for_engine if two else None, precision, resources, threads=threads)


def _require_cuda(opened: Opened, precision: str) -> None:
    """Raise if ONNX Runtime is built for CUDA, sees a GPU, and does not run the graph there."""
    failed = [row for row in opened.absences if row.device == "cuda"]
    lacks_kernels = precision == "bf16" and look_for_gpu().gpu is not None
    if failed and not lacks_kernels:
        raise RuntimeFailure(failed[0].reason)


def _open_openvino(
    directory: Path,
    manifest: Mapping[str, Any],
    precision: str,
    resources: ExitStack,
    *,
    for_proof: bool,
) -> Opened:
    if not _is_for_openvino(manifest, precision):
        return Opened()
    name = openvino_graph(manifest)
    if name and not (directory / name).is_file():
        return absent(OpenVinoRunner.name, "cpu", precision, f"{name} is not in the directory")
    return load_openvino(
        directory / name if name else None,
        precision,
        resources,
        threads=usable_cores() or 1,
        keep_fp32=manifest["spec"]["keep_fp32"],
        prove=for_proof and name == OPENVINO_GRAPH,
    )


def _is_for_openvino(manifest: Mapping[str, Any], precision: str) -> bool:
    """Tell whether an export is for OpenVINO, or names no runtime and OpenVINO works here."""
    spec = manifest["spec"]
    runtimes = spec.get("runtimes") or ()  # exports before it was offered do not say
    wanted = is_openvino_wanted(runtimes, precision, spec["keep_fp32"])
    return wanted or OPENVINO_GRAPH in manifest["files"]
