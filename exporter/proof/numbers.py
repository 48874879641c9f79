"""The numbers that the steps of a model take, as a graph of any precision may hold them.

In float64 a step that adds a number and takes it away again is no step. In the precision of a graph
it rounds: (x + 8) - 8 loses the last three bits of an x near 1 in bf16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from exporter.graph.raised import OF_GELU

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_OF_GELU = (*OF_GELU, 0.5, 1.0, 3.0)  # where a graph writes it as its equation
_OF_PADDING = (0.0,)
_ARITHMETIC = ("add", "sub", "mul", "div", "truediv", "true_divide", "pow")


class Numbers:
    """Numbers, and their roundings to the types of graphs.

    Args:
        numbers: Those that a model takes.
    """

    def __init__(self, numbers: Iterable[float]) -> None:
        exact = torch.tensor([*_OF_GELU, *_OF_PADDING, *numbers], dtype=torch.float64)
        self._known = {each for dtype in _TYPES for each in exact.to(dtype).tolist()}

    def __contains__(self, number: float) -> bool:
        return number in self._known


def numbers_of(function: str, arguments: Iterable[object]) -> Iterator[float]:
    """Give the numbers among the arguments of a step, and the number in each tensor of one element.

    Whole numbers count in arithmetic only: elsewhere they are sizes and axes.

    Args:
        function: The name of the torch function.
        arguments: Its arguments.
    """
    whole = function.strip("_").removeprefix("r") in _ARITHMETIC
    for each in arguments:
        if isinstance(each, float) or (whole and isinstance(each, int)):
            yield float(each)
        elif isinstance(each, Tensor) and each.numel() == 1 and each.is_floating_point():
            yield each.item()
