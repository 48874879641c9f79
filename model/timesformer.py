"""TimeSformer of the timesformer-pytorch package: divided attention, class token to everything.

The constructor, the parameter names and their shapes are those of the published package
(github.com/lucidrains/TimeSformer-pytorch, 0.4.1), so that its checkpoints load as they are. Each
layer attends through time, then over space: see `timesformer_layer`.

Axes: b batch, f h w tokens along time, height and width, n tokens of a group, d token width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from model.block import FeedForward, PatchEmbedding
from model.classifier import VideoClassifier
from model.config import ClipConfig, TimeSformerConfig, image_sides
from model.precision import as_type_of
from model.rotary import FrameRotary, ImageRotary, RotaryTables
from model.spacetime import SCHEMES, Grid, Step
from model.timesformer_layer import GroupAttention, Layer, TokenShift


class TimeSformer(VideoClassifier):
    """Video transformer classifier with the published constructor; trainable and exportable.

    Args:
        dim: Token width d.
        num_frames: Frames f of a clip.
        num_classes: Logits of a clip.
        image_size: Side of a square frame in pixels, or its height and width; multiples of
            `patch_size`.
        patch_size: Side of a patch in pixels.
        channels: Channels c of a frame.
        depth: Layers.
        heads: Attention heads.
        dim_head: Channels of a head.
        attn_dropout: Dropout rate of what attention gives, in training.
        ff_dropout: Dropout rate inside the feed-forward, in training.
        rotary_emb: Rotary positions; else a learned embedding.
        shift_tokens: Take a third of the channels from the next frame and one from the last.

    Raises:
        ConfigError: if the sizes do not fit together.
    """

    family = "timesformer_pytorch"
    config_class = TimeSformerConfig
    input_names = ("video", "mask")
    config: TimeSformerConfig

    def __init__(
        self,
        *,
        dim: int,
        num_frames: int,
        num_classes: int,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        channels: int = 3,
        depth: int = 12,
        heads: int = 8,
        dim_head: int = 64,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        rotary_emb: bool = True,
        shift_tokens: bool = False,
    ) -> None:
        height, width = image_sides(image_size)
        config = TimeSformerConfig(
            frames=num_frames,
            channels=channels,
            height=height,
            width=width,
            num_classes=num_classes,
            dim=dim,
            patch_size=patch_size,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
            rotary_emb=rotary_emb,
            shift_tokens=shift_tokens,
        )
        super().__init__(config)
        grid = Grid(num_frames, *config.grid)
        steps = SCHEMES["divided"](grid)
        self.to_patch_embedding = PatchEmbedding(channels, patch_size, dim)
        self.cls_token = nn.Parameter(torch.randn(1, dim))

        self.rotary = None
        if rotary_emb:
            # Half-split angles on interleaved pairs are not a rotation. Checkpoints need them.
            self.frame_rot_emb = FrameRotary(dim_head, half_split=True)
            self.image_rot_emb = ImageRotary(dim_head)
            angles = {step.name: partial(_patch_angles, step) for step in steps}
            self.rotary = RotaryTables(self.frame_rot_emb, self.image_rot_emb, angles, heads)
        else:
            self.pos_emb = nn.Embedding(grid.tokens + 1, dim)

        attention = partial(GroupAttention, dim, dim_head, heads, attn_dropout)
        feed_forward = partial(FeedForward, dim, dropout=ff_dropout)
        wrap = partial(TokenShift, grid, dim) if shift_tokens else _as_it_is
        self.layers = nn.ModuleList(
            Layer(dim, steps, attention, feed_forward, wrap) for _ in range(depth)
        )
        self.to_out = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    @classmethod
    def from_config(cls, config: ClipConfig) -> Self:
        """Build the model that a configuration describes."""
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        values["num_frames"] = values.pop("frames")
        values["image_size"] = (values.pop("height"), values.pop("width"))
        return cls(**values)

    def forward(self, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify clips: `(b, f, c, h, w) -> (b, classes)` logits.

        Args:
            video: Clips.
            mask: The frames to look at, bool `(b, f)`; all by default. Neither a patch, through
                time, nor the class token attends to another frame.

        Raises:
            ValueError: if the shapes are not those the model was made for.
        """
        more = () if mask is None else (mask,)
        cls, _ = deque(self.states(video, *more), maxlen=1)[0]
        return self.classify(self.merge_class_tokens(cls))

    def states(  # noqa: D102
        self, video: Tensor, *more: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self.check_shape(video)
        biases = self.mask_biases(video, *more) if more else {}
        cls, x = self.embed(video)
        yield cls, x
        for layer in self.layers:
            cls, x = layer(cls, x, self.rotary, biases)
            yield cls, x

    def normalise(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return self.to_out[0](tokens)

    def classify(self, cls: Tensor) -> Tensor:  # noqa: D102
        return self.to_out(cls)

    def embed(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Class token `(b, 1, d)` and patch tokens `(b, f h w, d)` with learned positions."""
        cls = self.cls_token
        x = as_type_of(cls, self.to_patch_embedding(video))
        if self.rotary is None:
            positions = self.pos_emb.weight
            cls, x = cls + positions[:1], x + positions[1:]
        return cls.expand(x.shape[0], 1, -1), x

    def mask_biases(self, video: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The biases that a frame mask adds to the logits, by step, for patches and class token.

        The class token is never masked as a key. So every softmax has at least one token.
        """
        if mask.shape != video.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"mask has the wrong shape or type: got {tuple(mask.shape)} of {mask.dtype}, "
                f"expected (b, f) = {tuple(video.shape[:2])} of torch.bool"
            )
        rows, columns = self.config.grid
        nothing = torch.tensor(0.0, dtype=video.dtype, device=video.device)
        frames = torch.where(mask, nothing, torch.finfo(video.dtype).min)  # b f
        patterns = {"cls_t": "b f -> b 1 (n f)", "cls_s": "b f -> b 1 (f n)"}  # as the groups lie
        biases = {
            name: F.pad(repeat(frames, pattern, n=rows * columns), (1, 0))
            for name, pattern in patterns.items()
        }
        return {**biases, "t": F.pad(frames, (1, 0))[:, None, None, None]}


def _patch_angles(step: Step, frame: FrameRotary, image: ImageRotary) -> Tensor:
    return step.angles(frame, image)[0]


def _as_it_is(fn: nn.Module) -> nn.Module:
    return fn
