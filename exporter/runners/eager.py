"""Eager PyTorch: the float64 truth, the rounding floor, and the baseline of the latency table."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import nn

from exporter.runners.base import Arrays, check_inputs

_DTYPES = {"fp64": torch.float64, "fp32": torch.float32}


class EagerRunner:
    """Runs a copy of a model in the given precision (`fp64` or `fp32`), on the CPU.

    Args:
        model: Maps `(b, f, c, h, w)` to `(b, classes)`.
        input_shapes: Its inputs in order, with `None` for the batch: `video`, and `mask` if any.
        precision: `fp64` or `fp32`; the clips are cast to it.
    """

    name = "eager"
    device = "cpu"
    transfers_included = True

    def __init__(
        self,
        model: nn.Module,
        input_shapes: Mapping[str, tuple[int | None, ...]],
        precision: str = "fp32",
    ) -> None:
        self.precision = precision
        self.threads = torch.get_num_threads()
        self.input_shapes = input_shapes
        self._dtype = _DTYPES[precision]
        self._model = copy.deepcopy(model).to(self._dtype).eval()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._model

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Give `logits` `(b, classes)` for `video` `(b, f, c, h, w)`, and `mask` `(b, f)`."""
        check_inputs(self, inputs)
        tensors = [torch.from_numpy(inputs[name]) for name in self.input_shapes]
        with torch.inference_mode():
            logits = self._model(
                *(t.to(self._dtype) if t.is_floating_point() else t for t in tensors)
            )
        return {"logits": logits.numpy()}
