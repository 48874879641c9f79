"""FastTimeSformer: a video classifier with a chosen attention scheme and mechanism.

The constructor, the parameter names and their shapes are those of the published package
(github.com/adam-mehdi/FastTimeSformer, 0.2.2), so that its checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from model.attention import MECHANISMS
from model.block import Block, FeedForward, PatchEmbedding, PreNorm
from model.classifier import VideoClassifier
from model.config import (
    FastTimeSformerConfig,
    MechanismName,
    SchemeName,
    Semantics,
)
from model.precision import as_type_of
from model.rotary import FrameRotary, ImageRotary
from model.spacetime import SCHEMES, Grid, rotary_tables
from model.upstream import (
    UPSTREAM_MECHANISMS,
    UpstreamJointBlock,
    raster_order,
    upstream_token_order,
)


class FastTimeSformer(VideoClassifier):
    """Video transformer classifier with the published constructor; trainable and exportable.

    Args:
        frames: Frames f of a clip.
        channels: Channels c of a frame.
        height: Height of a frame in pixels, a multiple of `patch_size`.
        width: Width of a frame in pixels, a multiple of `patch_size`.
        num_classes: Logits of a clip.
        dim: Token width d.
        patch_size: Side of a patch in pixels.
        depth: Blocks.
        heads: Attention heads; `dim // dim_head` unless given.
        dim_head: Channels of a head.
        drop_path: Stochastic depth rate in training.
        attn_dropout: Dropout rate of attention weights in training.
        proj_dropout: Dropout rate of projections in training.
        rotary_emb: Rotary positions; else a learned embedding.
        attn_mechanism: `fastformer`, `performer` or `regular`.
        attn_type: `space`, `joint`, `divided`, `local-global` or `axial`.
        frames_first: Clips come as `(b, f, c, h, w)`; else as `(b, c, f, h, w)`.
        semantics: `paper` computes the function of the papers; `upstream` computes the function
            of the published package, for checkpoints trained there.

    Raises:
        ConfigError: if the sizes do not fit together or a name is unknown.
    """

    family = "fast_timesformer"
    config_class = FastTimeSformerConfig
    config: FastTimeSformerConfig

    def __init__(
        self,
        frames: int,
        channels: int,
        height: int,
        width: int,
        num_classes: int,
        dim: int = 128,
        patch_size: int = 16,
        depth: int = 12,
        heads: int | None = None,
        dim_head: int = 64,
        drop_path: float = 0.1,
        attn_dropout: float = 0.0,
        proj_dropout: float = 0.0,
        rotary_emb: bool = True,
        attn_mechanism: MechanismName = "fastformer",
        attn_type: SchemeName = "divided",
        frames_first: bool = True,
        *,
        semantics: Semantics = "paper",
    ) -> None:
        config = FastTimeSformerConfig(
            frames=frames,
            channels=channels,
            height=height,
            width=width,
            num_classes=num_classes,
            dim=dim,
            patch_size=patch_size,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            drop_path=drop_path,
            attn_dropout=attn_dropout,
            proj_dropout=proj_dropout,
            rotary_emb=rotary_emb,
            attn_mechanism=attn_mechanism,
            attn_type=attn_type,
            frames_first=frames_first,
            semantics=semantics,
        )
        super().__init__(config)
        self.upstream = upstream = semantics == "upstream"
        grid = Grid(frames, *config.grid)
        steps = SCHEMES[attn_type](grid)
        self.steps = nn.ModuleList(steps)  # here their buffers move with the model

        self.rotary = None
        if rotary_emb:
            self.frame_rot_emb = FrameRotary(dim_head, half_split=upstream)
            self.image_rot_emb = ImageRotary(dim_head)
            self.rotary = rotary_tables(
                steps, self.frame_rot_emb, self.image_rot_emb, config.num_heads
            )
        else:
            self.pos_emb = nn.Embedding(grid.tokens + 1, dim)

        self.project_in = PatchEmbedding(channels, patch_size, dim)
        self.cls_token = nn.Parameter(torch.randn(1, dim))
        self.to_out = PreNorm(dim, nn.Linear(dim, num_classes))

        attention = partial(
            (UPSTREAM_MECHANISMS if upstream else MECHANISMS)[attn_mechanism],
            dim,
            dim_head,
            config.num_heads,
            attn_drop=attn_dropout,
            proj_drop=proj_dropout,
        )
        mlp = partial(FeedForward, dim, dropout=proj_dropout)
        block = UpstreamJointBlock if upstream and attn_type == "joint" else Block
        self.blocks = nn.ModuleList(
            block(dim, steps, attention, mlp, drop_path=drop_path) for _ in range(depth)
        )
        self.class_tokens = frames if attn_type == "space" else 1

    def states(  # noqa: D102
        self, video: Tensor, *more: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        del more
        self.check_shape(video, frames_first=self.config.frames_first)
        if not self.config.frames_first:
            video = video.transpose(1, 2)
        cls, x = self.embed(video)
        yield cls, x
        for block in self.blocks:
            cls, x = block(cls, x, self.rotary)
            yield cls, x

    def normalise(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return self.to_out.norm(tokens)

    def classify(self, cls: Tensor) -> Tensor:  # noqa: D102
        return self.to_out(cls)

    def join_tokens(self, cls: Tensor, x: Tensor) -> Tensor:
        """Patches are in the order `(f h w)` of the clip."""
        if self.upstream:
            x = raster_order(x, self.config.frames)
        return super().join_tokens(cls, x)

    def embed(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens `(b, k, d)` and patch tokens `(b, f h w, d)` with learned positions."""
        cls = self.cls_token
        x = as_type_of(cls, self.project_in(video))
        if self.rotary is None:
            positions = self.pos_emb.weight
            cls, x = cls + positions[:1], x + positions[1:]
        if self.upstream:
            x = upstream_token_order(x, self.config.frames)
        return cls.expand(x.shape[0], self.class_tokens, -1), x
