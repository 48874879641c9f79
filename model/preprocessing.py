"""How a file becomes the input of a model: which frames, which views, which size, which scale.

This file imports the standard library only, so that programs without torch can use it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any

from model.config import ConfigError, check_choice
from model.sampling import Sampling, Views

INTERPOLATIONS = ("bilinear", "bicubic")
CHANNEL_ORDERS = ("rgb", "bgr")
_NOT_GIVEN = ("embedded", "rules", "assumed")  # of the fields, those that no user gives
UNIFORM = Sampling()  # what is assumed where nothing tells how frames were sampled


@dataclass(frozen=True)
class Preprocessing:
    """How a file becomes the input: sampled, resized, cropped, `(pixel / 255 - mean) / std`.

    Attributes:
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        short_side: Pixels of the shorter side of the resized frame; None: the resized frame just
            covers the model's height and width.
        embedded: The model computes the equation itself and takes pixels: uint8 `(b, f, h, w, c)`.
        sampling: Which frames are taken; None if nothing tells it: then `UNIFORM` is assumed.
        views: The views that are averaged.
        stretch: Resize to the shape of the model's frame, whatever the shape of the source.
        interpolation: `bilinear` or `bicubic`.
        antialias: Average what is finer than the pixels of the result.
        channel_order: `rgb` or `bgr`.
        spacing: Seconds between neighbouring frames in training; None if not known.
        rules: The sampling of the data loader of the model's family: what a text like `dense:32@30`
            leaves open is taken from it.
        assumed: What was assumed because no file tells it, in words; "" if nothing was.

    Raises:
        ConfigError: if a value is not valid.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    short_side: int | None = None
    embedded: bool = False
    sampling: Sampling | None = field(default=None, kw_only=True)
    views: Views = field(default=Views(), kw_only=True)
    stretch: bool = field(default=False, kw_only=True)
    interpolation: str = field(default="bilinear", kw_only=True)
    antialias: bool = field(default=True, kw_only=True)
    channel_order: str = field(default="rgb", kw_only=True)
    spacing: float | None = field(default=None, kw_only=True)
    rules: Sampling = field(default=Sampling("dense"), kw_only=True, compare=False)
    assumed: str = field(default="", kw_only=True)

    @classmethod
    def unit(cls, channels: int) -> Preprocessing:
        """Return the default of a checkpoint without preprocessing: pixels in [0, 1], unchanged."""
        return cls((0.0,) * channels, (1.0,) * channels)

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Preprocessing:
        """Read what `asdict` wrote, now or in an older version, which said less.

        Entries that are not fields are ignored.

        Raises:
            ConfigError: if a value is not valid.
        """
        if not isinstance(entries, Mapping):
            raise ConfigError(f"preprocessing: got {entries!r}, expected a table")
        if missing := {"mean", "std"} - entries.keys():
            raise ConfigError(f"preprocessing lacks {' and '.join(sorted(missing))}")
        known = {each.name: entries[each.name] for each in fields(cls) if each.name in entries}
        if not isinstance(known.get("sampling"), Mapping):  # older versions wrote a text here
            known.pop("sampling", None)
        return cls(**_made(known, {"mean", "std"}))

    def changed(self, entries: Mapping[str, Any]) -> Preprocessing:
        """Return the description with the entries of a `clip` table in place of its own.

        `sampling` and `views` are texts, as on the command line, or mappings. What a text does not
        say is that of the present sampling, or of the rules.

        Raises:
            ConfigError: if an entry is unknown or not valid.
        """
        made = dict(entries)
        for name in made:
            names = [each.name for each in fields(self) if each.name not in _NOT_GIVEN]
            check_choice("entry of clip", name, names)
        if isinstance(text := made.get("sampling"), str):
            alike = self.sampling and text.strip().lower().startswith(self.sampling.kind)
            made["sampling"] = Sampling.parse(text, self.sampling if alike else self.rules)
        if isinstance(text := made.get("views"), str):
            made["views"] = Views.parse(text, self.views)
        if "sampling" in made:
            made["assumed"] = ""
        return replace(self, **_made(made))

    @property
    def sampled(self) -> Sampling:
        """The sampling in use: the one that is told, or the one that is assumed."""
        return self.sampling or UNIFORM

    @property
    def is_assumed(self) -> bool:
        """Whether no file and no user tells how frames are sampled."""
        return self.sampling is None or bool(self.assumed)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Say how a file is read, for a report; first how frames are sampled."""
        if self.sampling is None:
            frames = (
                "the frames are the centres of equal segments of the whole file: this is assumed, "
                "no file tells how the model was trained (see --sampling)"
            )
        else:
            frames = f"{self.sampling.sentence} ({self.sampling})"
            frames += f": {self.assumed} is assumed, no file tells it" if self.assumed else ""
        views = f"{self.views.clips} clips x {self.views.crops} crops, their {self.views.average}"
        side = self.short_side
        size = f"to a shorter side of {side} pixels" if side else "to cover the model's frame"
        resize = (
            "stretched to the shape of the model's frame" if self.stretch else f"resized {size}"
        )
        kind = f"{self.interpolation}, {'with' if self.antialias else 'without'} antialiasing"
        return (
            frames,
            f"{views} averaged" if self.views.count > 1 else "one view, the centre crop",
            f"frames are {resize} ({kind})",
        )

    @property
    def one_view(self) -> Preprocessing:
        """The same with a single view, in the centre."""
        return replace(self, views=replace(self.views, clips=1, crops=1))

    def training_spacing(self, frames: int) -> float | None:
        """Return the seconds between neighbouring frames that the model expects, if known.

        They are those of the training; where these are not known, those of the sampling.
        """
        return self.spacing or self.sampled.spacing(frames)

    def __post_init__(self) -> None:
        _check_scale(self.mean, self.std)
        if not isinstance(self.sampling, (Sampling, NoneType)):
            raise ConfigError(f"preprocessing sampling: got {self.sampling!r}, expected a Sampling")
        if not isinstance(self.views, Views):
            raise ConfigError(f"preprocessing views: got {self.views!r}, expected Views")
        side = self.short_side
        if side is not None and (type(side) is not int or side < 1):
            raise ConfigError(
                f"preprocessing short_side must be a whole number of at least 1: got {side!r}"
            )
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("channel_order", self.channel_order, CHANNEL_ORDERS)
        if not (self.spacing is None or (_is_number(self.spacing) and self.spacing > 0)):
            raise ConfigError(f"preprocessing spacing: got {self.spacing!r}, expected seconds")
        for name in ("embedded", "stretch", "antialias"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(
                    f"preprocessing {name}: got {getattr(self, name)!r}, expected true or false"
                )


def _check_scale(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, (tuple, list)) or not all(map(_is_number, values)):
            raise ConfigError(f"preprocessing {name} must be numbers: got {values!r}")
    if len(mean) != len(std):
        raise ConfigError(
            f"preprocessing mean and std differ in length: got {len(mean)} and {len(std)}"
        )
    if not all(value > 0 for value in std):
        raise ConfigError(f"preprocessing std must be positive: got {std}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _made(entries: Mapping[str, Any], needed: Collection[str] = ()) -> dict[str, Any]:
    """Convert values of JSON to those of the fields of `Preprocessing`."""
    made = dict(entries)
    for name in ("mean", "std"):
        if name in made or name in needed:
            if not isinstance(made.get(name), (list, tuple)):
                raise ConfigError(f"preprocessing {name}: got {made.get(name)!r}, expected a list")
            made[name] = tuple(made[name])
    for name, kind in (("sampling", Sampling), ("rules", Sampling), ("views", Views)):
        if name not in made:
            continue
        value = made[name]
        if isinstance(value, Mapping):
            for entry in value:
                check_choice(f"entry of {name}", entry, [each.name for each in fields(kind)])
            made[name] = kind(**value)
        elif not isinstance(value, kind) and (value is not None or name != "sampling"):
            raise ConfigError(f"{name}: got {value!r}, expected a text or a table")
    return made
