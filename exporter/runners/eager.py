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
        clip_shape: `(f, c, h, w)` of its clips.
        precision: `fp64` or `fp32`; inputs are cast to it.
    """

    name = "eager"
    device = "cpu"
    transfers_included = True

    def __init__(
        self, model: nn.Module, clip_shape: tuple[int, ...], precision: str = "fp32"
    ) -> None:
        self.precision = precision
        self.threads = torch.get_num_threads()
        self.input_shapes: Mapping[str, tuple[int | None, ...]] = {"video": (None, *clip_shape)}
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
        """Give `logits` `(b, classes)` for `video` `(b, f, c, h, w)`."""
        check_inputs(self, inputs)
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(inputs["video"]).to(self._dtype))
        return {"logits": logits.numpy()}
