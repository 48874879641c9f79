"""Eager PyTorch: the float64 truth, the rounding floor, and the baseline of the latency table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from exporter.precision import Int8, in_precision
from exporter.runners.base import Arrays, Closing, check_inputs
from model.classifier import VideoClassifier


class EagerRunner(Closing):
    """Runs a copy of a model on the CPU in a given precision.

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
        self._model = in_precision(model, precision, keep_fp32, int8)

    def close(self) -> None:  # noqa: D102
        del self._model

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute the outputs of the model, as `logits` `(b, classes)`, of its inputs."""
        check_inputs(self, inputs)
        tensors = [torch.from_numpy(inputs[name]) for name in self.input_shapes]
        with torch.inference_mode():
            made = self._model(
                *(t.to(self._dtype) if t.is_floating_point() else t for t in tensors)
            )
        outputs = made if isinstance(made, tuple) else (made,)
        names = self._model.output_names
        return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}


class TruthRunner(Closing):
    """Eager PyTorch in float64: the truth. It computes a clip once, since several proofs need it.

    It holds the model in float64 inside a `with` block only, and what it computed for ever.
    """

    name = "eager"
    device = "cpu"
    precision = "fp64"
    transfers_included = True

    def __init__(
        self, model: VideoClassifier, input_shapes: Mapping[str, tuple[int | None, ...]]
    ) -> None:
        self.threads = torch.get_num_threads()
        self.input_shapes = input_shapes
        self._model = model
        self._runner: EagerRunner | None = None
        self._known: dict[tuple[bytes, ...], dict[str, np.ndarray]] = {}

    def close(self) -> None:  # noqa: D102
        self._runner = None

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute the outputs of `EagerRunner`, or give those of the same inputs before."""
        check_inputs(self, inputs)
        arrays = (np.ascontiguousarray(inputs[name]) for name in self.input_shapes)
        key = tuple(hashlib.sha256(array.data).digest() for array in arrays)
        if key not in self._known:
            if self._runner is None:
                self._runner = EagerRunner(self._model, self.input_shapes, self.precision)
            self._known[key] = self._runner.run(inputs)
        return dict(self._known[key])
