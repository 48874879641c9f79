"""Eager PyTorch: the float64 truth, the rounding floor, and the baseline of the latency table."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from exporter.precision import Int8, in_precision
from exporter.runners.base import Arrays, Closing, check_inputs
from model.classifier import VideoClassifier

_AT_ONCE = 2  # runs of `run_each`; each needs memory for a model and its activations
_of_thread = threading.local()


class EagerRunner(Closing):
    """Runs copies of a model on the CPU in a given precision.

    Args:
        model: The model; its weights are float32.
        input_shapes: Its inputs in order, `video` and maybe `mask`, with `None` for the batch.
        precision: As `in_precision` takes it: `fp64` (the truth), `fp32`, `fp16`, `bf16`, `int8`.
        keep_fp32: Regular expressions over the paths of modules that stay in float32.
        int8: How `int8` rounds.
    """

    name = "eager"
    device = "cpu"
    transfers_included = True

    def __init__(
        self,
        model: VideoClassifier,
        input_shapes: Mapping[str, tuple[int | None, ...]],
        precision: str = "fp32",
        keep_fp32: Sequence[str] = (),
        int8: Int8 | None = None,
    ) -> None:
        self.precision = precision
        self.threads = torch.get_num_threads()
        self.input_shapes = input_shapes
        self._dtype = torch.float64 if precision == "fp64" else torch.float32
        self._copy = partial(in_precision, model, precision, keep_fp32, int8)
        together = model.reentrant and self.threads % _AT_ONCE == 0
        self._at_once = _AT_ONCE if together else 1
        self._idle: list[VideoClassifier] = []  # the copies that no thread runs

    def close(self) -> None:  # noqa: D102
        self._idle.clear()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute the outputs of the model, as `logits` `(b, classes)`, of its inputs."""
        check_inputs(self, inputs)
        tensors = [torch.from_numpy(inputs[name]) for name in self.input_shapes]
        model = self._take()
        with torch.inference_mode():
            made = model(*(t.to(self._dtype) if t.is_floating_point() else t for t in tensors))
        self._idle.append(model)
        outputs = made if isinstance(made, tuple) else (made,)
        return {
            name: output.numpy() for name, output in zip(model.output_names, outputs, strict=True)
        }

    def run_each(self, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        """Run some batches at once, with a share of the threads each; give the outputs in order.

        On few clips two runs of one thread each are faster than runs of two threads, which wait for
        each other after every operator.
        """
        batches = iter(batches)
        first = list(islice(batches, self._at_once))
        if len(first) == 1 or self._at_once == 1:
            yield from map(self.run, chain(first, batches))
            return
        ended = threading.Event()
        share = self.threads // self._at_once
        pool = ThreadPoolExecutor(self._at_once, "eager", _begin, (share, ended))
        hook = register_module_forward_pre_hook(lambda *_: _refuse_after_end())
        waiting: deque[Future[dict[str, np.ndarray]]] = deque()
        try:
            for inputs in chain(first, batches):
                waiting.append(pool.submit(self.run, inputs))
                if len(waiting) > self._at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            ended.set()  # Ctrl-C does not wait for the runs
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            hook.remove()
            torch.set_num_threads(self.threads)  # a pool changes the number for new threads

    def _take(self) -> VideoClassifier:
        try:
            return self._idle.pop()
        except IndexError:
            return self._copy()


class TruthRunner(EagerRunner):
    """Eager PyTorch in float64: the truth. It computes a clip once, since several proofs need it.

    Leaving a `with` block frees the models in float64; the results stay.
    """

    def __init__(
        self, model: VideoClassifier, input_shapes: Mapping[str, tuple[int | None, ...]]
    ) -> None:
        super().__init__(model, input_shapes, "fp64")
        self._known: dict[tuple[bytes, ...], dict[str, np.ndarray]] = {}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute the outputs of `EagerRunner`, or give those of the same inputs before."""
        check_inputs(self, inputs)
        arrays = (np.ascontiguousarray(inputs[name]) for name in self.input_shapes)
        key = tuple(hashlib.sha256(array.data).digest() for array in arrays)
        if key not in self._known:
            self._known[key] = super().run(inputs)
        return dict(self._known[key])


def _begin(threads: int, ended: threading.Event) -> None:
    """Prepare a thread of a pool."""
    torch.set_num_threads(threads)
    _of_thread.ended = ended


def _refuse_after_end() -> None:
    """End a run in a thread of a pool that was left; a hook is called in every other thread too."""
    ended = getattr(_of_thread, "ended", None)
    if ended is not None and ended.is_set():
        raise CancelledError
