"""Trace blocks of the same structure once, as an ONNX function that each of them calls.

Tracing takes most of the time of an export, and most blocks of a model differ only in their
weights. While the model is traced, each block is one node: a call that reads the weights of the
block. Then one block of each structure is traced as a function, and every call is inlined.
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
from model.space_time_transformer import SpaceTimeBlock
from model.timesformer_layer import Layer

# The smallest number of blocks that share a function. A single block is traced with the model.
MIN_SHARED_BLOCKS = 2
Export = Callable[..., torch.onnx.ONNXProgram | None]  # the signature of torch.onnx.export
_DOMAIN = "tsformer"
_PATH = "tsformer.block"  # metadata key of a call: the path of the block
_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"  # metadata key of a traced tensor
_PLACEHOLDER = "the_block"  # the path of the block in the metadata of the function's nodes


class _Tokens(NamedTuple):
    """Shape and type of an input tensor of a block; the size of a free axis is `None`."""

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
        sizes = [2 if size is None else size for size in self.sizes]  # torch would fix a size of 1
        return torch.zeros(sizes, dtype=self.dtype)


class _Signature(NamedTuple):
    """The inputs of a block other than its weights."""

    tensors: tuple[_Tokens, ...]
    rotary: bool
    biases: tuple[str, ...] | None


class BlockFunction:
    """The ONNX function of all blocks of one structure.

    Args:
        name: The name of the function, unique in the model.
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
        """Replace the forward of a block in a trace by one node, a call of this function.

        The output tokens have the shapes of the input tokens.

        Raises:
            ValueError: if an earlier block took tokens of another shape, or other biases.
        """
        tensors = (cls, x, *(biases or {}).values())
        names = None if biases is None else tuple(biases)
        signature = _Signature(tuple(map(_Tokens.of, tensors)), rotary is not None, names)
        if self._signature is None:
            self._signature, self._alone = signature, _Alone(self._block, rotary, names)
        if signature != self._signature:
            raise ValueError(f"{path} takes {signature}, an earlier block takes {self._signature}")
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
        """Trace the body of the function.

        Args:
            export: The exporter that also traces the model.
            batch: The dimension of the free axes. None if the model has no free axis.

        Raises:
            ValueError: if the output tokens of the blocks do not have the shapes of the input
                tokens, or a weight is not an input of the function.
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
            weight = graph.initializers.pop(name, None)  # None for a weight that nothing reads
            graph.inputs.append(ir.Value(name=name) if weight is None else weight)
            graph.inputs[-1].const_value = None
        for name, constant in list(graph.initializers.items()):  # a function has no initializers
            if constant.metadata_props.get(_KIND) in {"PARAMETER", "BUFFER"}:
                raise ValueError(f"{name} would be the same for all blocks")
            node = ir.node("Constant", [], {"value": constant.const_value})
            graph.insert_before(graph[0], node)
            constant.replace_all_uses_with(node.outputs[0])
            del graph.initializers[name]
        return ir.Function(_DOMAIN, self.name, graph=graph, attributes=())


class _Alone(nn.Module):
    """A block outside its model, with tensors as its only arguments."""

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
    """Replace blocks that share a structure by calls while the model is traced.

    Yields:
        The functions that the blocks call. Define them after the model is traced.
    """
    alike: dict[Hashable, dict[str, nn.Module]] = {}
    # A call gives tokens only, so a model that also gives attention weights is traced as it is.
    whole = "attentions" in getattr(model, "output_names", ())
    for path, module in () if whole else model.named_modules():
        if isinstance(module, (Block, Layer, SpaceTimeBlock)) and "forward" not in vars(module):
            alike.setdefault(structure(module), {})[path] = module
    shared = [blocks for blocks in alike.values() if len(blocks) >= MIN_SHARED_BLOCKS]
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
    model_class: type,
    export: Export,
    batch: Dim | None,
) -> None:
    """Define the functions of a traced model and inline all calls.

    Args:
        model: The traced model.
        functions: The functions that the model calls.
        model_class: The class of the traced module. The metadata of the nodes contains its name.
        export: See `BlockFunction.define`.
        batch: See `BlockFunction.define`.
    """
    for function in functions:
        defined = function.define(export, batch)
        model.functions[defined.identifier()] = defined
    passes.InlinePass()(model)
    wrapper_name = f"{_Alone.__module__}.{_Alone.__qualname__}"
    model_name = f"{model_class.__module__}.{model_class.__qualname__}"
    for node in model.graph:
        path = node.metadata_props.pop(_PATH, None)
        if path is not None:
            for key, text in node.metadata_props.items():
                text = text.replace(wrapper_name, model_name)
                node.metadata_props[key] = text.replace(_PLACEHOLDER, path)


def structure(block: nn.Module) -> Hashable:
    """Return everything that decides what a block computes, except the values of its weights.

    Blocks with equal structures compute the same function of tokens and weights. Objects that
    cannot be compared count as different.
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
    """Return the attributes of a module, without dropout rates that matter only in training."""
    facts = vars(module)
    if isinstance(module, (DropPath, nn.Dropout)) and not module.training:
        facts = {name: value for name, value in facts.items() if name not in {"rate", "p"}}
    return facts


def _weights(alone: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by every name, as an export does: a tied weight has several."""
    parameters = alone.named_parameters(remove_duplicate=False)
    return dict([*parameters, *alone.named_buffers(remove_duplicate=False)])
