"""The weights of softmax attention, collected while a model runs.

A hook listens to the dropout of the attention weights, which does nothing outside training. So the
blocks themselves do not know whether somebody wants their weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.attention import RegularAttention
from model.block import Block
from model.config import ConfigError
from model.precision import at_least_float32


class AttentionWeights:
    """A context in which the weights of the last step of each block are collected.

    Args:
        modules: The modules of a model.
        wanted: False for a context that does nothing.

    Attributes:
        found: For each block that ran, weights `(b, g, heads, n, n)` in at least float32.
    """

    def __init__(self, modules: Iterable[nn.Module], *, wanted: bool) -> None:
        self.found: list[Tensor] = []
        blocks = [module for module in modules if isinstance(module, Block)] if wanted else []
        self._heard = [last_attention(block).get_submodule("attn_drop") for block in blocks]
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [heard.register_forward_hook(self._note) for heard in self._heard]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, _module: nn.Module, _arguments: object, weights: Tensor) -> None:
        self.found.append(at_least_float32(weights))

    @staticmethod
    def require(model: nn.Module) -> None:
        """Raise `ConfigError`, with the reason, if a model has no attention weights to give."""
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        if not blocks:
            raise ConfigError(
                "attentions are not offered for this family: its class token and its patches "
                "attend to different tokens"
            )
        if not isinstance(last_attention(blocks[0]), RegularAttention):
            raise ConfigError(
                "attentions exist in regular attention only: performer and fastformer never "
                "compute the weights of tokens for tokens"
            )
        if len(blocks[0].steps[-1].keys) > 1:
            raise ConfigError(
                "attentions need groups of one size, and the groups of this scheme and grid differ"
            )


def last_attention(block: Block) -> nn.Module:
    """The attention of the step in which the class token takes part."""
    return block.get_submodule(f"attn_{block.steps[-1].name}.fn")
