"""Measure the cost of one clip in a model: operations, floating point operations, bytes (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from model.classifier import VideoClassifier


class Cost(NamedTuple):
    """Operations other than views, their floating point operations, and bytes read and written.

    Only products count as floating point operations (`torch.utils.flop_counter`).
    """

    operations: int
    flops: int
    bytes: int

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(mine - its for mine, its in zip(self, other, strict=True)))


class _Call(NamedTuple):
    inputs: list[int]
    outputs: list[int]
    cost: Cost


class Known(NamedTuple):
    """What a call gives for arguments of some shapes: the layouts of its outputs, and its cost."""

    layouts: list[tuple[Any, ...]]
    alone: bool  # one output, not a list of them
    cost: Cost


class _Recorder(TorchDispatchMode):
    """Records the calls that depend on the clip; the export folds those that use weights alone.

    Most calls of a model repeat an earlier one with other tensors of the same shapes. Their outputs
    are made without PyTorch's formulas for shapes, which are slow.
    """

    def __init__(self, clip: Tensor, known: dict[Any, Known]) -> None:
        super().__init__()
        self.live = {id(clip): clip}  # keeps the tensors alive, so that no id is used twice
        self.calls: list[_Call] = []
        self._known = known

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # torch's signature
        types: Any,  # noqa: ANN401  # as above
        args: Any = (),  # noqa: ANN401  # as above
        kwargs: Any = None,  # noqa: ANN401  # as above
    ) -> Any:  # noqa: ANN401  # as above
        kwargs = kwargs or {}
        key = (func, _layout(args), _layout(tuple(kwargs.items())))
        read = list(_tensors((args, tuple(kwargs.values()))))
        known = self._known.get(key)
        if known is None:
            output = func(*args, **kwargs)
            made = list(_tensors(output))
            cost = _cost(func, args, kwargs, read, output, made)
            if not any(tensor is other for tensor in made for other in read):  # not in place
                alone = isinstance(output, Tensor)
                self._known[key] = Known([_layout(tensor) for tensor in made], alone, cost)
        else:
            cost = known.cost
            made = [
                torch.empty_strided(shape, strides, dtype=dtype, device="meta")
                for shape, strides, dtype in known.layouts
            ]
            output = made[0] if known.alone else made
        if any(id(tensor) in self.live for tensor in read):
            self.live.update((id(tensor), tensor) for tensor in made)
            self.calls.append(_Call([*map(id, read)], [*map(id, made)], cost))
        return output


def _layout(value: Any) -> Any:  # noqa: ANN401  # an argument of an operator
    """Describe an argument by what decides shapes and cost: a tensor by its layout."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_layout, value))
    return type(value), value  # a number decides the type of the output with its own


def _tensors(value: Any) -> Iterator[Tensor]:  # noqa: ANN401  # an argument of an operator
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)


def _cost(
    func: Any,  # noqa: ANN401  # an operator
    args: Any,  # noqa: ANN401  # as above
    kwargs: dict[str, Any],
    read: list[Tensor],
    output: Any,  # noqa: ANN401  # as above
    made: list[Tensor],
) -> Cost:
    if _is_view(func, read, made):
        return Cost(0, 0, 0)
    formula: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
    flops = formula(*args, **kwargs, out_val=output) if formula else 0
    return Cost(1, flops, sum(tensor.nbytes for tensor in chain(read, made)))


def measure(model: VideoClassifier, known: dict[Any, Known] | None = None) -> Cost:
    """Measure the cost of one clip; ignore unused results and results of weights alone.

    `known` keeps what the calls give: models that have calls in common are measured faster with
    the same one.
    """
    config = model.config
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    leading = (config.frames, config.channels)
    if not getattr(config, "frames_first", True):
        leading = leading[::-1]
    clip = torch.empty(1, *leading, config.height, config.width, device="meta")
    if model.preprocessing.embedded:
        clip = clip.permute(0, 1, 3, 4, 2).to(torch.uint8)
    with torch.no_grad(), _Recorder(clip, {} if known is None else known) as recorder:
        made = functional_call(model, on_meta, (clip,))
    needed, total = {id(output) for output in tree_leaves(made)}, Cost(0, 0, 0)
    for call in reversed(recorder.calls):
        if needed.intersection(call.outputs):
            needed.update(call.inputs)
            total = Cost(*map(sum, zip(total, call.cost, strict=True)))
    return total


def _is_view(func: Any, read: list[Tensor], made: list[Tensor]) -> bool:  # noqa: ANN401  # an operator
    if func.is_view:
        return True
    reshaped = func.overloadpacket in (torch.ops.aten._unsafe_view, torch.ops.aten._reshape_alias)
    same = len(made) == 1 and any(made[0] is tensor for tensor in read)
    return reshaped or same
