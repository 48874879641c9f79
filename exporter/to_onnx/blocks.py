"""Blocks of one structure are traced once: as a function of the graph, called by each of them.

Tracing takes most of an export, and most blocks of a model differ in nothing but their weights.
While the model is traced, each of them is one node that reads the block's weights. What such a node
computes is traced from one of the blocks, and then put in the place of every node.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Self

import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor, nn
from torch.export import Dim

from model.block import Block, DropPath
from model.rotary import RotaryTables
from model.timesformer import Layer

FEWEST = 2  # blocks that share a function: one alone is traced where it stands
Export = Callable[..., torch.onnx.ONNXProgram | None]  # as torch.onnx.export
_DOMAIN = "tsformer"
_PATH = "tsformer.block"  # of a node that stands for a block: the path of the block
_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"  # of a tensor that was traced
_PLACEHOLDER = "the_block"  # stands for the path in what is noted of the function's nodes


class _Tokens(NamedTuple):
    """Shape and type of a tensor that blocks take; free axes are `None`."""

    sizes: tuple[int | None, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        sizes = (size if isinstance(size, int) else None for size in tensor.shape)
        return cls(tuple(sizes), tensor.dtype)

    @property
    def free(self) -> list[int]:
        return [axis for axis, size in enumerate(self.sizes) if size is None]

    def example(self) -> Tensor:
        sizes = [2 if size is None else size for size in self.sizes]  # 1 is taken for a constant
        return torch.zeros(sizes, dtype=self.dtype)


class _Signature(NamedTuple):
    """What blocks take beside their weights."""

    tensors: tuple[_Tokens, ...]
    rotary: bool
    biases: tuple[str, ...] | None


class BlockFunction:
    """What blocks of one structure compute.

    Args:
        name: Unique among the functions of the model.
        block: One of the blocks.
    """

    def __init__(self, name: str, block: nn.Module) -> None:
        self.name, self._block = name, block
        self._alone: _Alone | None = None
        self._signature: _Signature | None = None

    def call(
        self,
        block: nn.Module,
        path: str,
        cls: Tensor,
        x: Tensor,
        rotary: RotaryTables | None,
        biases: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Stand for a block in a trace: one node, which gives tokens shaped as those it takes.

        Raises:
            ValueError: if a block before it took tokens of another shape, or other biases.
        """
        tensors = (cls, x, *(biases or {}).values())
        names = None if biases is None else tuple(biases)
        signature = _Signature(tuple(map(_Tokens.of, tensors)), rotary is not None, names)
        if self._signature is None:
            self._signature, self._alone = signature, _Alone(self._block, rotary, names)
        if signature != self._signature:
            raise ValueError(f"{path} takes {signature}, a block before it {self._signature}")
        cls, x = torch.onnx.ops.symbolic_multi_out(
            f"{_DOMAIN}::{self.name}",
            (*tensors, *_weights(_Alone(block, rotary)).values()),
            dtypes=(cls.dtype, x.dtype),
            shapes=(cls.shape, x.shape),
            version=1,
            metadata_props={_PATH: path},
        )
        return cls, x

    def define(self, export: Export, batch: Dim | None) -> ir.Function:
        """Trace what the calls stand for.

        Args:
            export: What traces the model, too.
            batch: Stands for the axes that are free in the model; none are unless given.

        Raises:
            ValueError: if the blocks do not give tokens shaped as those they take, or a weight is
                no input of the function.
        """
        assert self._signature is not None, "no block was called"
        assert self._alone is not None
        tensors = tuple(one.example() for one in self._signature.tensors)
        shapes = tuple(dict.fromkeys(one.free, batch) for one in self._signature.tensors)
        traced = export(self._alone, tensors, dynamic_shapes=(shapes,))
        assert traced is not None
        graph = traced.model.graph
        for given, taken in zip(graph.outputs, graph.inputs, strict=False):
            if (given.shape, given.dtype) != (taken.shape, taken.dtype):
                raise ValueError(f"blocks take {taken} and give {given}")
        for name in _weights(self._alone):
            weight = graph.initializers.pop(name, None)  # none for what is not read
            graph.inputs.append(ir.Value(name=name) if weight is None else weight)
            graph.inputs[-1].const_value = None
        for name, constant in list(graph.initializers.items()):  # a function has none
            if constant.metadata_props.get(_KIND) in {"PARAMETER", "BUFFER"}:
                raise ValueError(f"{name} would be the same for all blocks")
            node = ir.node("Constant", [], {"value": constant.const_value})
            graph.insert_before(graph[0], node)
            constant.replace_all_uses_with(node.outputs[0])
            del graph.initializers[name]
        return ir.Function(_DOMAIN, self.name, graph=graph, attributes=())


class _Alone(nn.Module):
    """A block whose arguments are tensors."""

    def __init__(
        self, block: nn.Module, rotary: RotaryTables | None, biases: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        self.add_module(_PLACEHOLDER, block)
        self.rotary, self.biases = rotary, biases

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        cls, x, *biases = tensors
        more = () if self.biases is None else (dict(zip(self.biases, biases, strict=True)),)
        return self.get_submodule(_PLACEHOLDER)(cls, x, self.rotary, *more)


@contextmanager
def blocks_called(model: nn.Module) -> Iterator[list[BlockFunction]]:
    """Let the blocks of a model that share their structure be calls while it is traced.

    Yields:
        The functions that they call, to be defined once the model is traced.
    """
    alike: dict[Hashable, dict[str, nn.Module]] = {}
    for path, module in model.named_modules():
        if isinstance(module, (Block, Layer)) and "forward" not in vars(module):
            alike.setdefault(structure(module), {})[path] = module
    shared = [blocks for blocks in alike.values() if len(blocks) >= FEWEST]
    functions = []
    try:
        for blocks in shared:
            functions.append(BlockFunction(f"Block{len(functions)}", next(iter(blocks.values()))))
            for path, block in blocks.items():
                block.forward = partial(functions[-1].call, block, path)
        yield functions
    finally:
        for blocks in shared:
            for block in blocks.values():
                vars(block).pop("forward", None)


def define_blocks(
    model: ir.Model,
    functions: Iterable[BlockFunction],
    of_class: type,
    export: Export,
    batch: Dim | None,
) -> None:
    """Put what the calls of a traced model stand for in their places.

    Args:
        model: As traced from a module of the class `of_class`.
        functions: Those that it calls.
        of_class: Its name stands in the metadata of nodes.
        export: As for `BlockFunction.define`.
        batch: As for `BlockFunction.define`.
    """
    for function in functions:
        defined = function.define(export, batch)
        model.functions[defined.identifier()] = defined
    passes.InlinePass()(model)
    alone, name = (f"{one.__module__}.{one.__qualname__}" for one in (_Alone, of_class))
    for node in model.graph:
        path = node.metadata_props.pop(_PATH, None)
        if path is not None:
            for key, text in node.metadata_props.items():
                node.metadata_props[key] = text.replace(alone, name).replace(_PLACEHOLDER, path)


def structure(block: nn.Module) -> Hashable:
    """All that decides what a block computes but the values of its weights.

    Blocks of equal structures compute the same function of tokens and weights. What cannot be told
    to be equal is taken to differ.
    """
    names = {id(one): ("module", path) for path, one in block.named_modules()}
    weights = list(_weights(block).items())
    names |= {id(one): ("weight", name) for name, one in weights}

    def describe(value: object) -> Hashable:
        if id(value) in names:
            return names[id(value)]
        if isinstance(value, (nn.Module, Tensor)):
            return "other", id(value)
        if isinstance(value, (tuple, list)):
            return type(value), tuple(map(describe, value))
        if isinstance(value, (set, frozenset)):
            return type(value), frozenset(map(describe, value))
        if isinstance(value, dict):
            return type(value), tuple((describe(key), describe(one)) for key, one in value.items())
        return type(value), value if isinstance(value, Hashable) else id(value)

    tensors = tuple((name, one.shape, one.dtype) for name, one in weights)
    modules = tuple((path, type(one), describe(_facts(one))) for path, one in block.named_modules())
    return tensors, modules


def _facts(module: nn.Module) -> dict[str, object]:
    """What a module holds, without rates that count in training only."""
    facts = vars(module)
    if isinstance(module, (DropPath, nn.Dropout)) and not module.training:
        facts = {name: value for name, value in facts.items() if name not in {"rate", "p"}}
    return facts


def _weights(alone: nn.Module) -> dict[str, Tensor]:
    """By every name, as an export has them: what is tied stands under several."""
    parameters = alone.named_parameters(remove_duplicate=False)
    return dict([*parameters, *alone.named_buffers(remove_duplicate=False)])
