"""Check that a traced graph has the free batch it was asked for, and find what fixed it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from exporter.errors import OnnxError


def require_free_batch(
    graph: ir.Model,
    model: nn.Module,
    example: tuple[Tensor, ...],
    shapes: Any,  # noqa: ANN401
) -> None:
    """Raise `OnnxError` if the batch of an input became a number, with the module that did it.

    Args:
        graph: The traced graph.
        model: The model that was traced.
        example: Its inputs `(b, ...)`.
        shapes: The free sizes of the inputs, as `torch.export` takes them.
    """
    fixed = [
        value for value in graph.graph.inputs if value.shape and isinstance(value.shape[0], int)
    ]
    if not fixed:
        return
    place = _find_module(model, example, shapes)
    raise OnnxError(
        f"the batch was to be free, but {place} fixed it",
        got=f"{fixed[0].name} {tuple(fixed[0].shape or ())}",
        expected="a free first size",
        remedy="take the size from x.shape[0] in its forward, not from len(x) or int()",
    )


def _find_module(model: nn.Module, example: tuple[Tensor, ...], shapes: Any) -> str:  # noqa: ANN401
    """Trace again, and note after which module the size is known to be a number."""
    found: list[str] = []
    with _noting(model, found), suppress(Exception):  # torch raises where a size was fixed
        torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
    return found[0] if found else "the model"


@contextmanager
def _noting(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Write the path of each module after which the batch is fixed; inner modules come first."""
    sizes: list[Any] = []

    def remember(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        sizes[:] = [arguments[0].shape[0]]

    with ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(remember).remove)
        for path, module in model.named_modules():

            def note(_module: nn.Module, _in: object, _out: object, path: str = path) -> None:
                size = sizes[0]
                if isinstance(size, int) or size.node.maybe_as_int() is not None:
                    found.append(path or type(model).__name__)

            hooks.callback(module.register_forward_hook(note).remove)
        yield
