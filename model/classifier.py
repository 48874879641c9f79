"""The base of every model: a classifier of clips that describes itself to the exporter.

Axes: b batch, f h w tokens along time, height and width, k class tokens, d token width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from model.attention_weights import AttentionWeights
from model.config import ClipConfig, ConfigError
from model.outputs import LOGITS
from model.preprocessing import Preprocessing
from model.task import TaskName, assume_task


class VideoClassifier(nn.Module, ABC):
    """Maps clips `(b, f, c, h, w)` to logits `(b, classes)`.

    Attributes:
        family: The name of its family of checkpoints.
        config: All sizes and choices that decide its function.
        preprocessing: How clips become its input.
        labels: Names of the classes, or None where they are unknown.
        task: What the logits mean.
        notes: Remarks for the report about how the model was loaded.
        input_names: The inputs that its forward takes, in order.
        output_names: What its forward gives, in order: one tensor, or a tuple of several.
        class_tokens: Class tokens of a clip: one, or one for each frame.
        reentrant: Whether copies of it may run at the same time.
    """

    family: ClassVar[str]
    config_class: ClassVar[type[ClipConfig]]
    input_names: ClassVar[tuple[str, ...]] = ("video",)
    output_names: tuple[str, ...] = (LOGITS,)
    class_tokens: int = 1
    reentrant: ClassVar[bool] = True
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    task: TaskName
    notes: tuple[str, ...]

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = Preprocessing.unit(config.channels)
        self.labels = None
        self.task = assume_task(config.num_classes)
        self.notes = ()
        self.register_state_dict_post_hook(_sign_state_dict)

    @classmethod
    def from_config(cls, config: ClipConfig) -> Self:
        """Build the model that a configuration describes."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)})

    def forward(self, video: Tensor) -> Tensor:
        """Classify clips: `(b, f, c, h, w) -> (b, classes)` logits.

        Raises:
            ValueError: if the clip's shape is not the one the model was made for.
        """
        cls, _ = deque(self.states(video), maxlen=1)[0]
        return self.classify(self.merge_class_tokens(cls))

    def compute(self, names: Collection[str], video: Tensor, *more: Tensor) -> dict[str, Tensor]:
        """Compute outputs of clips `(b, f, c, h, w)`, in the order of `names`.

        - `logits` `(b, classes)`.
        - `features` `(b, d)`: the class token after the last norm, which the classifier reads.
        - `tokens` `(b, n, d)`: all tokens after the last norm, the class token first. With a class
          token for each frame: `(b, f, n, d)`.
        - `hidden_states` `(b, 1 + depth, n, d)`: all tokens before the first block and after each.
        - `attentions` `(b, depth, g, heads, n, n)`: the weights of the last attention step of each
          block, after softmax, for its g groups of n tokens with the class token first.

        Args:
            names: Names of `model.outputs`.
            video: The clips.
            more: Further inputs, in the order of `input_names`.

        Raises:
            ConfigError: if the model does not have an output.
            ValueError: if the clip's shape is not the one the model was made for.
        """
        self.check_outputs(names)
        with AttentionWeights(self.modules(), wanted="attentions" in names) as weights:
            kept = None if "hidden_states" in names else 1
            states = deque(self.states(video, *more), maxlen=kept)
        cls, x = states[-1]
        makers: dict[str, Callable[[], Tensor]] = {
            LOGITS: lambda: self.classify(self.merge_class_tokens(cls)),
            "features": lambda: self.normalise(self.merge_class_tokens(cls)),
            "tokens": lambda: self.normalise(self.join_tokens(cls, x)),
            "hidden_states": lambda: torch.stack([self.join_tokens(*one) for one in states], dim=1),
            "attentions": lambda: self.order_attentions(torch.stack(weights.found, dim=1)),
        }
        return {name: makers[name]() for name in names}

    def check_outputs(self, names: Collection[str]) -> None:
        """Raise `ConfigError`, with the reason, if the model does not have an output."""
        if LOGITS in names and not self.config.num_classes:
            raise ConfigError("the model has no classifier, so it gives no logits, but features")
        if "attentions" in names:
            AttentionWeights.require(self)

    @abstractmethod
    def states(self, video: Tensor, *more: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Give class tokens `(b, k, d)` and patch tokens `(b, f h w, d)` before and after blocks.

        Raises:
            ValueError: if the clip's shape is not the one the model was made for.
        """

    @abstractmethod
    def normalise(self, tokens: Tensor) -> Tensor:
        """Apply the last norm: `(..., d) -> (..., d)`."""

    @abstractmethod
    def classify(self, cls: Tensor) -> Tensor:
        """Apply the last norm and the classifier: `(b, d) -> (b, classes)`."""

    def merge_class_tokens(self, cls: Tensor) -> Tensor:
        """The class token of a clip, or the mean of those of its frames: `(b, k, d) -> (b, d)`."""
        return cls.squeeze(1) if self.class_tokens == 1 else cls.mean(1)

    def join_tokens(self, cls: Tensor, x: Tensor) -> Tensor:
        """Join class tokens and patch tokens: `(b, 1 + f h w, d)`, or `(b, f, 1 + h w, d)`.

        The patches have the order of the published package of the family.
        """
        if self.class_tokens == 1:
            return torch.cat((cls, x), dim=1)
        return torch.cat((cls.unsqueeze(2), x.unflatten(1, (self.class_tokens, -1))), dim=2)

    def order_attentions(self, weights: Tensor) -> Tensor:
        """Put the tokens of a group, `(b, depth, g, heads, n, n)`, in the published order."""
        return weights

    def check_shape(self, video: Tensor, *, frames_first: bool = True) -> None:
        """Raise `ValueError` unless the clips have the shape of the configuration."""
        config = self.config
        axes, leading = "f, c, h, w", (config.frames, config.channels)
        if not frames_first:
            axes, leading = "c, f, h, w", leading[::-1]
        expected = (*leading, config.height, config.width)
        if tuple(video.shape[1:]) != expected:
            raise ValueError(
                f"video has the wrong shape: got {tuple(video.shape)}, expected (b, {axes}) "
                f"with {axes} = {expected}"
            )


def _sign_state_dict(
    model: nn.Module, _state: dict[str, Any], _prefix: str, metadata: dict[str, Any]
) -> None:
    """Write the configuration into the metadata of a state dict.

    Parameters may have the names of a published package and mean another function under other
    semantics. So a bare `torch.save(model.state_dict())` must differ from a published file.
    """
    assert isinstance(model, VideoClassifier)
    metadata["family"] = model.family
    metadata["config"] = asdict(model.config)
