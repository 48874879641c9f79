"""The limit of this machine: its rate on the matrix products of a model, and its copy bandwidth.

The rates are measured in the runtime that runs the model, because data sheets consider neither the
shapes of the products nor the cores that a process gets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import RuntimeFailure
from exporter.graph.cost import GraphCost, MatmulShape
from exporter.runners.onnxruntime import available_devices

BUDGET_SECONDS = 1.5  # for all measurements together
MIN_RUNS = 3
COPIED_BYTES = 2**28  # twice that with its source: larger than the caches of most processors
# A larger product is timed on a part of its rows: its rate no longer depends on their number.
_TIMED_FLOPS = 2**30
_IGNORED_SHARE = 1e-3  # of all operations: calling the runtime takes longer than the product

# Prepares a product for a number of threads; the result computes it once per call.
Prepare = Callable[[MatmulShape, int], Callable[[], object]]


@dataclass(frozen=True)
class MachineLimit:
    """Float32 operations and copied bytes per second that `threads` threads reach here.

    A copied byte counts twice, since it is read and written; `GraphCost.bytes` counts alike.
    """

    gemm_flops_per_s: float
    copy_bytes_per_s: float
    threads: int


def measure_machine(
    shapes: Mapping[MatmulShape, int], threads: int, *, seconds: float = BUDGET_SECONDS
) -> MachineLimit:
    """Measure both rates, with a fifth of the time for copying; raises as `measure_gemm`."""
    gemm = measure_gemm(shapes, threads, seconds=0.8 * seconds)
    copy = _copy_bandwidth(threads, seconds=0.2 * seconds)
    return MachineLimit(gemm, copy, threads)


def limit_seconds(cost: GraphCost, limit: MachineLimit) -> float:
    """The shortest time of a run: that of its matrix products, one after another.

    All other operations can be fused into the products. Memory sets no further limit: weights,
    inputs and outputs may stay in the caches from run to run, so a run can take less time than
    copying them.
    """
    return cost.matmul_flops / limit.gemm_flops_per_s


def of_limit(cost: GraphCost, limit: MachineLimit, seconds: float) -> float:
    """The fraction of the limit that a run of `seconds` reached; 1.0 is the limit.

    It exceeds 1 only by noise, or if the graph computes in a type that is faster than float32.
    """
    return limit_seconds(cost, limit) / seconds


def measure_gemm(
    shapes: Mapping[MatmulShape, int],
    threads: int,
    *,
    seconds: float = BUDGET_SECONDS,
    prepare: Prepare | None = None,
) -> float:
    """Measure the operations per second of these products, run one after another.

    Args:
        shapes: How often the model computes each product (`matmul_shapes`).
        threads: Threads of one product.
        seconds: The time to take, divided by operations; MIN_RUNS of each product may take
            longer.
        prepare: Prepares one product in a runtime (default: ONNX Runtime).

    Raises:
        RuntimeFailure: if ONNX Runtime is not installed, or there are no products.
    """
    total = sum(shape.flops * count for shape, count in shapes.items())
    if not total:
        raise RuntimeFailure("there are no matrix products to measure the machine on")
    prepare = prepare or _in_onnxruntime
    flops = taken = 0.0
    for shape, count in shapes.items():
        share = shape.flops * count / total
        if share >= _IGNORED_SHARE:
            timed = _part(shape)
            rate = timed.flops / median_seconds(prepare(timed, threads), share * seconds)
            flops += shape.flops * count
            taken += shape.flops * count / rate
    return flops / taken


def measure_copy_bandwidth(threads: int, *, seconds: float = BUDGET_SECONDS) -> float:
    """Measure bytes read and written per second while copying a block larger than the caches."""
    source, target = (np.ones(COPIED_BYTES, np.uint8) for _ in range(2))  # ones: pages exist
    parts = np.array_split(target, threads), np.array_split(source, threads)
    with ThreadPoolExecutor(threads) as pool:
        taken = median_seconds(lambda: list(pool.map(np.copyto, *parts)), seconds)
    return 2 * COPIED_BYTES / taken


# The bandwidth depends on no model, so a process measures it once.
_copy_bandwidth = cache(measure_copy_bandwidth)


def _part(shape: MatmulShape) -> MatmulShape:
    """Take fewer products, then fewer rows: as many as the rate needs."""
    if shape.flops <= _TIMED_FLOPS:
        return shape
    one = shape._replace(batch=1)
    if one.flops <= _TIMED_FLOPS:
        return shape._replace(batch=_TIMED_FLOPS // one.flops)
    return one._replace(m=max(1, one.m * _TIMED_FLOPS // one.flops))


def _in_onnxruntime(shape: MatmulShape, threads: int) -> Callable[[], object]:
    """Prepare a product with a constant right-hand side; its result goes into memory made here."""
    available_devices()  # raises, with a remedy, if ONNX Runtime is not installed
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        matmul_model(shape).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    left = np.ones((shape.batch, shape.m, shape.k), np.float32)
    binding.bind_ortvalue_input("left", onnxruntime.OrtValue.ortvalue_from_numpy(left))
    made = np.ones((shape.batch, shape.m, shape.n), np.float32)
    binding.bind_ortvalue_output("made", onnxruntime.OrtValue.ortvalue_from_numpy(made))
    # The binding holds addresses only, so whoever can run the product must hold the arrays.
    return lambda: (session.run_with_iobinding(binding), left, made)


def matmul_model(shape: MatmulShape) -> onnx.ModelProto:
    """Make a graph that computes `made`, the product of `left` and a constant."""
    batch, m, k, n = shape
    right = np.ones((k, n) if batch == 1 else (batch, k, n), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["made"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.FLOAT, (batch, m, k))],
        [helper.make_tensor_value_info("made", TensorProto.FLOAT, (batch, m, n))],
        [numpy_helper.from_array(right, "right")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def median_seconds(run: Callable[[], object], budget: float) -> float:
    """Measure the median time over at least MIN_RUNS runs, and as many as fit the budget."""
    run()  # the first run allocates buffers and starts threads
    seconds: list[float] = []
    started = time.perf_counter()
    while len(seconds) < MIN_RUNS or time.perf_counter() - started < budget:
        before = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - before)
    return float(np.median(seconds))
