"""The protocol of every runtime: arrays by name in, arrays by name out.

with OnnxRuntimeRunner(path) as runner:
    logits = runner.run({"video": video})["logits"]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np

from exporter.errors import RuntimeFailure

Arrays = Mapping[str, np.ndarray]
EVALUATOR = "onnx-reference"  # the name of `exporter.runners.reference`, which imports onnx


class Runner(Protocol):
    """One runtime that holds one model.

    `input_shapes` maps the name of an input to its shape, with `None` for a free batch.
    """

    name: str
    device: str
    precision: str
    threads: int
    transfers_included: bool
    input_shapes: Mapping[str, tuple[int | None, ...]]

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run the model once.

        Raises:
            RuntimeFailure: if names or shapes differ from the model's, or the runtime fails.
        """
        ...


@runtime_checkable
class RunsAtOnce(Protocol):
    """A runner that computes several batches at the same time, in less time than one by one."""

    def run_each(self, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        """Run the model on each batch; give the outputs in the order of the batches."""
        ...


def run_each(runner: Runner, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
    """Run a model on each batch, at the same time where that is faster."""
    return runner.run_each(batches) if isinstance(runner, RunsAtOnce) else map(runner.run, batches)


class Closing:
    """A context manager that closes itself at its end; every runtime is one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except RuntimeFailure:
            if error is None:  # else the first error says more than what follows from it
                raise

    def close(self) -> None:
        """Release the model and its memory."""
        raise NotImplementedError


def check_outputs(runner: Runner, outputs: Arrays, names: Iterable[str]) -> None:
    """Raise `RuntimeFailure` unless a run gave all outputs of these names."""
    if missing := [name for name in names if name not in outputs]:
        raise RuntimeFailure(f"{runner.name} gives no {missing[0]!r}", got=sorted(outputs))


def check_inputs(runner: Runner, inputs: Arrays, dtypes: Mapping[str, str] | None = None) -> None:
    """Raise `RuntimeFailure` unless names, shapes and, if given, dtypes are those of the model."""
    if set(inputs) != set(runner.input_shapes):
        raise RuntimeFailure(
            f"{runner.name}: wrong inputs", got=sorted(inputs), expected=sorted(runner.input_shapes)
        )
    for name, array in inputs.items():
        expected = runner.input_shapes[name]
        fits = len(array.shape) == len(expected) and all(
            want is None or want == have for want, have in zip(expected, array.shape, strict=True)
        )
        if not fits:
            raise RuntimeFailure(
                f"{runner.name}: wrong shape of {name!r}", got=array.shape, expected=expected
            )
        if dtypes is not None and array.dtype != dtypes[name]:
            raise RuntimeFailure(
                f"{runner.name}: wrong dtype of {name!r}", got=array.dtype, expected=dtypes[name]
            )
