"""The base of every model: a classifier of clips that describes itself to the exporter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from model.config import ClipConfig, Preprocessing


class VideoClassifier(nn.Module, ABC):
    """Maps clips `(b, f, c, h, w)` to logits `(b, classes)`.

    Attributes:
        family: The name of its family of checkpoints.
        config: All sizes and choices that decide its function.
        preprocessing: How clips become its input.
        labels: Names of the classes, or None where they are unknown.
        notes: Remarks for the report about how the model was loaded.
        input_names: The inputs that its forward takes, in order.
    """

    family: ClassVar[str]
    config_class: ClassVar[type[ClipConfig]]
    input_names: ClassVar[tuple[str, ...]] = ("video",)
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    notes: tuple[str, ...]

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = Preprocessing.unit(config.channels)
        self.labels = None
        self.notes = ()
        self.register_state_dict_post_hook(_sign_state_dict)

    @classmethod
    def from_config(cls, config: ClipConfig) -> Self:
        """Build the model that a configuration describes."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)})

    @abstractmethod
    def forward(self, video: Tensor) -> Tensor:
        """Classify clips: `(b, f, c, h, w) -> (b, classes)` logits.

        Raises:
            ValueError: if the clip's shape is not the one the model was made for.
        """

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
