"""Frozen configurations, their validation and the names of the choices.

This file imports the standard library only, so that programs without torch can use it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from model.limits import clip_fault, size_fault

MechanismName = Literal["regular", "performer", "fastformer"]
SchemeName = Literal["space", "joint", "divided", "local-global", "axial"]
Semantics = Literal["paper", "upstream"]

ActivationName = Literal[
    "gelu", "relu", "selu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "silu",
    "tanh",
]  # fmt: skip

MECHANISM_NAMES: tuple[str, ...] = get_args(MechanismName)
SCHEME_NAMES: tuple[str, ...] = get_args(SchemeName)
UPSTREAM_SCHEMES: tuple[str, ...] = ("joint", "divided")  # schemes of the published package
SEMANTICS: tuple[str, ...] = get_args(Semantics)
FAMILY_NAMES: tuple[str, ...] = (
    "fast_timesformer", "timesformer_pytorch", "facebookresearch", "huggingface", "mmaction2",
    "frozen_in_time",
)  # fmt: skip
ACTIVATION_NAMES: tuple[str, ...] = get_args(ActivationName)


class ConfigError(ValueError):
    """A model configuration is invalid; the message states the valid values."""


def check_choice(what: str, name: object, options: Iterable[str]) -> None:
    """Raise `ConfigError` unless `name` is an option; list the options and the nearest one."""
    options = tuple(options)
    if name in options:
        return
    closest = nearest(str(name), options)
    hint = f"; did you mean {closest!r}?" if closest else ""
    raise ConfigError(f"unknown {what}: got {name!r}, expected one of {', '.join(options)}{hint}")


def check_size(name: str, value: object, least: int = 1) -> None:
    """Raise `ConfigError` unless a size is a whole number in its limits."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}: got {value!r}")
    if fault := size_fault(name, value):
        raise ConfigError(fault)


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option most similar to a misspelt name, or `None` if no option is similar."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return found[0] if found else None


def image_sides(size: Any) -> tuple[Any, Any]:  # noqa: ANN401  # the configuration checks it
    """Return height and width, given `(height, width)` or the side of a square."""
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    return height, width


@dataclass(frozen=True)
class ClipConfig:
    """Base of every family's configuration: the clip size in pixels and the number of classes."""

    frames: int
    channels: int
    height: int
    width: int
    num_classes: int

    patch_size: int = field(default=16, kw_only=True)

    def check_sizes(self, *more: str, headless: bool = False) -> None:
        """Raise `ConfigError` unless the sizes, and those named in `more`, are in their limits."""
        sizes = ("frames", "channels", "height", "width", "num_classes", "patch_size")
        for name in sizes + more:
            check_size(name, getattr(self, name), 0 if headless and name == "num_classes" else 1)
        if fault := clip_fault(self.frames, self.channels, self.height, self.width):
            raise ConfigError(fault)
        for name in ("height", "width"):
            value = getattr(self, name)
            patch = self.patch_size
            if value % patch:
                below = value // patch * patch
                above = below + patch
                fits = f"{below} or {above}" if below else f"{above}"
                raise ConfigError(
                    f"{name} must be a multiple of patch_size {patch}: got {value}, nearest {fits}"
                )

    def _check_rates(self, *names: str) -> None:
        for name in names:
            rate = getattr(self, name)
            if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise ConfigError(f"{name} must be in [0, 1): got {rate!r}")

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches along height and width."""
        return self.height // self.patch_size, self.width // self.patch_size


@dataclass(frozen=True)
class FastTimeSformerConfig(ClipConfig):
    """Complete configuration of a `FastTimeSformer`, with the published argument names.

    Sizes in pixels: `height`, `width`, `patch_size`. Rates in [0, 1): `drop_path`,
    `attn_dropout`, `proj_dropout`. `heads=None` means `dim // dim_head`.

    Raises:
        ConfigError: if a value is out of range or two values do not fit together.
    """

    dim: int = 128
    depth: int = 12
    heads: int | None = None
    dim_head: int = 64
    drop_path: float = 0.1
    attn_dropout: float = 0.0
    proj_dropout: float = 0.0
    rotary_emb: bool = True
    attn_mechanism: MechanismName = "fastformer"
    attn_type: SchemeName = "divided"
    frames_first: bool = True
    semantics: Semantics = field(default="paper", kw_only=True)

    def __post_init__(self) -> None:
        check_choice("attention mechanism", self.attn_mechanism, MECHANISM_NAMES)
        check_choice("attention scheme", self.attn_type, SCHEME_NAMES)
        check_choice("semantics", self.semantics, SEMANTICS)
        if self.semantics == "upstream":
            check_choice("attention scheme (upstream)", self.attn_type, UPSTREAM_SCHEMES)
        self.check_sizes("dim", "depth", "dim_head")
        self._check_rates("drop_path", "attn_dropout", "proj_dropout")
        self._check_heads()

    def _check_heads(self) -> None:
        if self.rotary_emb and self.dim_head % 2:
            raise ConfigError(f"rotary embedding needs an even dim_head: got {self.dim_head}")
        # The published package ignores `heads`.
        if self.heads is None or self.semantics == "upstream":
            if self.dim % self.dim_head:
                raise ConfigError(
                    f"dim must be a multiple of dim_head {self.dim_head}: got {self.dim}"
                )
            return
        if not isinstance(self.heads, int) or self.heads < 1:
            raise ConfigError(f"heads must be a whole number of at least 1: got {self.heads!r}")
        if self.attn_mechanism == "fastformer" and self.heads * self.dim_head != self.dim:
            raise ConfigError(
                "fastformer adds its query to its output, so heads x dim_head must equal dim: "
                f"got {self.heads} x {self.dim_head} and {self.dim}"
            )

    @property
    def attn(self) -> str:
        """Attention mechanism, under the name that all families share."""
        return self.attn_mechanism

    @property
    def scheme(self) -> str:
        """Attention scheme, under the name that all families share."""
        return self.attn_type

    @property
    def num_heads(self) -> int:
        """Number of heads in use: `heads`, or `dim // dim_head` if `heads` is `None` or ignored."""
        if self.heads is None or self.semantics == "upstream":
            return self.dim // self.dim_head
        return self.heads


@dataclass(frozen=True)
class ViTConfig(ClipConfig):
    """Complete configuration of a `TimeSformerViT`.

    `heads` must divide `dim`. `mlp_dim` is the width of the feed-forward layer; its default is
    4 x `dim`. `num_classes` is 0 without a classifier. `last_norm_eps` is that of the norm after
    the last block, if it differs from `norm_eps`.

    Raises:
        ConfigError: if a value is out of range or two values do not fit together.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int | None = None
    qkv_bias: bool = True
    hidden_act: ActivationName = "gelu"
    norm_eps: float = 1e-6
    drop_path: float = 0.0
    attn_dropout: float = 0.0
    proj_dropout: float = 0.0
    scheme: SchemeName = "divided"
    attn: MechanismName = "regular"
    last_norm_eps: float | None = None

    def __post_init__(self) -> None:
        check_choice("attention mechanism", self.attn, MECHANISM_NAMES)
        check_choice("attention scheme", self.scheme, SCHEME_NAMES)
        check_choice("activation", self.hidden_act, ACTIVATION_NAMES)
        sizes = ("dim", "depth", "heads", *(("mlp_dim",) if self.mlp_dim else ()))
        self.check_sizes(*sizes, headless=True)
        rates = ("attn_dropout", "proj_dropout")  # training may drop the last block of all clips
        self._check_rates(*rates, *(() if self.drop_path == 1 else ("drop_path",)))
        if self.dim % self.heads:
            raise ConfigError(f"dim must be a multiple of heads {self.heads}: got {self.dim}")
        last = {} if self.last_norm_eps is None else {"last_norm_eps": self.last_norm_eps}
        for name, eps in {"norm_eps": self.norm_eps, **last}.items():
            if not isinstance(eps, (int, float)) or eps < 0:
                raise ConfigError(f"{name} must not be negative: got {eps!r}")


@dataclass(frozen=True)
class SpaceTimeConfig(ViTConfig):
    """Complete configuration of a `SpaceTimeTransformer`, which has one scheme and one attention.

    `ln_pre`: normalise the tokens before the first block, as CLIP does. `attn_dropout` is 0: the
    published package drops no attention weights.

    Raises:
        ConfigError: as `ViTConfig`, or if there is no such choice.
    """

    ln_pre: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        only_ones = {"scheme": "divided", "attn": "regular", "attn_dropout": 0}
        for name, only in (*only_ones.items(), ("last_norm_eps", None)):
            if (value := getattr(self, name)) != only:
                raise ConfigError(f"frozen_in_time has only {name} {only!r}: got {value!r}")


@dataclass(frozen=True)
class TimeSformerConfig(ClipConfig):
    """Complete configuration of a `TimeSformer`.

    `heads` x `dim_head` may differ from `dim`. Rates in [0, 1): `attn_dropout`, `ff_dropout`.

    Raises:
        ConfigError: if a value is out of range or two values do not fit together.
    """

    dim: int
    depth: int = 12
    heads: int = 8
    dim_head: int = 64
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    rotary_emb: bool = True
    shift_tokens: bool = False

    def __post_init__(self) -> None:
        self.check_sizes("dim", "depth", "heads", "dim_head")
        self._check_rates("attn_dropout", "ff_dropout")
        if self.rotary_emb and self.dim_head % 2:
            raise ConfigError(f"rotary embedding needs an even dim_head: got {self.dim_head}")
        if self.shift_tokens and self.dim < 3:
            raise ConfigError(
                f"shift_tokens moves thirds of dim, so dim must be at least 3: got {self.dim}"
            )

    @property
    def attn(self) -> str:
        """The only attention mechanism of this family."""
        return "regular"

    @property
    def scheme(self) -> str:
        """The only attention scheme of this family."""
        return "divided"


# Sizes of the TimeSformer paper, table 5: ViT-B/16, divided.
PRESETS: dict[str, dict[str, int]] = {
    "TimeSformer": {"frames": 8, "height": 224, "width": 224, "num_classes": 400},
    "TimeSformer-HR": {"frames": 16, "height": 448, "width": 448, "num_classes": 400},
    "TimeSformer-L": {"frames": 96, "height": 224, "width": 224, "num_classes": 400},
}
# Sizes of a fresh FastTimeSformer unless given.
FRESH = {"frames": 5, "channels": 3, "height": 224, "width": 224, "num_classes": 2, "dim": 128}
