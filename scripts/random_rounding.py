"""Whether a model is no function in a precision: random roundings of its steps move its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exporter import ExportSpec
from exporter.inputs.clips import gather_inputs
from exporter.load import load_model
from exporter.precision import in_precision
from exporter.results import Parity
from model.classifier import VideoClassifier
from model.precision import rounded_modules

HALF_STEP = {"fp16": 2.0**-11, "bf16": 2.0**-8}  # relative: the most that rounding moves a number
TRIALS = 16


def explains(spec: ExportSpec, row: Parity) -> bool:
    """Whether such roundings alone exceed the tolerance of a row on each input that does.

    The model is the eager one in float64, without any rewrite or graph.
    """
    bad = [entry.name for entry in row.per_input if entry.rel_l2 > (row.tolerance or 0.0)]
    if spec.precision not in HALF_STEP or not bad or row.judged == "structure":
        return False
    model = load_model(spec)
    inputs = gather_inputs((), model.config, model.preprocessing).chosen(*bad)
    video = torch.from_numpy(inputs.arrays["video"])
    exact = in_precision(model, "fp64")
    moved = largest_moves(exact, video, HALF_STEP[spec.precision])
    return bool((moved > (row.tolerance or 0.0)).all())


@torch.inference_mode()
def largest_moves(model: VideoClassifier, video: Tensor, half_step: float) -> Tensor:
    """The largest relative change of the logits of each clip `(n,)` over `TRIALS` roundings."""
    clip = video.double() if video.is_floating_point() else video
    truth = model(clip)
    made = [_with_noise(model, clip, half_step, seed) for seed in range(TRIALS)]
    distances = torch.stack([(logits - truth).norm(dim=-1) for logits in made])
    return distances.amax(0) / truth.norm(dim=-1)


def _with_noise(model: VideoClassifier, clip: Tensor, half_step: float, seed: int) -> Tensor:
    """Move all that the modules of lower precision take and give by up to half a step."""
    source = torch.Generator().manual_seed(seed)

    def noisy(value: Any) -> Any:  # noqa: ANN401  # what a module takes
        if isinstance(value, Sequence):
            return tuple(map(noisy, value))
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        draw = 2 * torch.rand(value.shape, generator=source, dtype=value.dtype) - 1
        return value * (1 + half_step * draw)

    hooks = []
    for module in rounded_modules(model).values():
        hooks.append(module.register_forward_pre_hook(lambda _module, taken: noisy(taken)))
        hooks.append(module.register_forward_hook(lambda _module, _taken, given: noisy(given)))
    try:
        return model(clip)
    finally:
        for hook in hooks:
            hook.remove()
