"""Eager PyTorch: the float64 truth, the rounding floor, and the baseline of the latency table."""

from __future__ import annotations

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
