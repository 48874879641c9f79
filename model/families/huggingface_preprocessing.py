"""Convert the `preprocessor_config.json` of a Hugging Face directory to our `Preprocessing`.

The Hugging Face processor resizes the shorter side of a frame to `size`, crops the centre to
`crop_size`, then computes `(pixel * rescale_factor - image_mean) / image_std`. The file can disable
each of these steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from model.config import ConfigError, ViTConfig

# The first of these files that exists is read.
PROCESSOR_NAMES = ("preprocessor_config.json", "video_preprocessor_config.json")
_DEFAULTS: Mapping[str, Any] = {  # defaults of TimesformerVideoProcessor
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
# Defaults of VideoMAEImageProcessor that differ.
_VIDEOMAE = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_TYPES = ("image_processor_type", "video_processor_type", "feature_extractor_type")
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by the numbers of PIL


class Processor:
    """One `preprocessor_config.json`, with the defaults of its class filled in.

    Args:
        name: The name of the file, for messages.
        entries: The content of the file.

    Raises:
        ConfigError: if `size` or `crop_size` is invalid.
    """

    def __init__(self, name: str, entries: Mapping[str, Any]) -> None:
        self.name = name
        self.type = str(next((entries[key] for key in _TYPES if key in entries), ""))
        given = {key: value for key, value in entries.items() if value is not None}
        own_defaults = _VIDEOMAE if self.type.startswith("VideoMAE") else {}
        self.entries = {**_DEFAULTS, **own_defaults, **given}
        self.resized = self._size("size") if self.entries["do_resize"] else None
        self.cropped = self._size("crop_size") if self.entries["do_center_crop"] else None
        if isinstance(self.cropped, int):
            self.cropped = (self.cropped, self.cropped)

    @property
    def output(self) -> tuple[int, int] | None:
        """Height and width of the processed frames; `None` if they depend on the clip."""
        if self.cropped is not None:
            assert not isinstance(self.cropped, int)
            return self.cropped
        return self.resized if isinstance(self.resized, tuple) else None

    def preprocessing(self, config: ViTConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the entries of `Preprocessing` for a model, and notes on all differences."""
        mean, std = self._fold(config.channels)
        (short_side, stretch), notes = self._place(config)
        if self.type and not self.type.startswith(("VideoMAE", "Timesformer")):
            notes.append(f"{self.name}: {self.type} read as VideoMAEImageProcessor")
        kind = self.entries["resample"]
        interpolation = _INTERPOLATIONS.get(kind) if isinstance(kind, int) else None
        if self.resized is not None and interpolation is None:
            notes.append(f"{self.name}: frames are resized bilinearly, not by resample {kind}")
        described = {
            "mean": mean,
            "std": std,
            "short_side": short_side,
            "stretch": stretch,
            "interpolation": interpolation or "bilinear",
        }
        return described | self._sampling(config), tuple(notes)

    def _sampling(self, config: ViTConfig) -> dict[str, Any]:
        """Return the sampling, if the processor samples frames: the starts of equal segments."""
        entries = self.entries
        if entries.get("do_sample_frames") is True and entries.get("num_frames") == config.frames:
            return {"sampling": {"kind": "uniform", "rule": "starts"}}
        return {}

    def _fold(self, channels: int) -> tuple[list[float], list[float]]:
        """Write `(pixel * r - mean) / std` as `(pixel / 255 - mean / u) / (std / u)`, u = 255 r."""
        entries = self.entries
        unit = 255.0
        if entries["do_rescale"]:
            factor = self._numbers("rescale_factor", 1)[0]
            if factor <= 0:
                raise ConfigError(f"{self.name}: rescale_factor must be positive: got {factor}")
            unit *= factor
        mean, std = [0.0] * channels, [1.0] * channels
        if entries["do_normalize"]:
            mean = self._numbers("image_mean", channels)
            std = self._numbers("image_std", channels)
        return [value / unit for value in mean], [value / unit for value in std]

    def _place(self, config: ViTConfig) -> tuple[tuple[int | None, bool], list[str]]:
        """Return the shorter side of the resized frames, whether they are stretched, and notes."""
        wanted = config.height, config.width
        shown = f"{wanted[0]} x {wanted[1]}"
        if self.resized is None:
            note = f"{self.name} resizes no frames; this package resizes them to cover {shown}"
            return (None, False), [note]
        notes, stretch = [], isinstance(self.resized, tuple)
        if isinstance(self.resized, int):
            short = self.resized
            if self.cropped is None:
                notes.append(
                    f"{self.name} crops no frames; this package crops their centre to {shown}"
                )
        else:
            short = min(self.resized)
            height, width = self.resized
            if height * wanted[1] != width * wanted[0]:
                notes.append(
                    f"{self.name} squashes frames to {height} x {width}; this package squashes "
                    f"them to the shape of {shown}"
                )
        if self.output not in (None, wanted):
            assert self.output is not None
            scaled = max(1, round(short * min(wanted) / min(self.output)))
            if short != min(self.output):
                notes.append(
                    f"{self.name} is for {self.output[0]} x {self.output[1]}; at {shown} the "
                    f"shorter side of a frame is resized to {scaled}, not {short}"
                )
            short = scaled
        if short < min(wanted):
            notes.append(
                f"{self.name} resizes the shorter side to {short} and pads with black; this "
                f"package resizes frames to cover {shown}"
            )
            return (None, stretch), notes
        return (short, stretch), notes

    def _numbers(self, key: str, count: int) -> list[float]:
        values = self.entries[key]
        if not isinstance(values, (list, tuple)):
            values = [values] * count
        for value in values:
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ConfigError(f"{self.name}: {key} must be numbers: got {values!r}")
        return list(values)

    def _size(self, key: str) -> int | tuple[int, int]:
        """Read a size: one number for the shorter side or for a square, or height and width."""
        size = self.entries[key]
        match size:
            case {"shortest_edge": side, **rest} if not rest:
                sides = [side]
            case {"height": height, "width": width, **rest} if not rest:
                sides = [height, width]
            case [_, _]:
                sides = size
            case _:
                sides = [size]
        if not all(type(side) is int and side > 0 for side in sides):
            raise ConfigError(
                f"{self.name}: {key} is {size!r}, expected a number of pixels, "
                "{'shortest_edge': pixels} or {'height': pixels, 'width': pixels}"
            )
        return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def read_processor(sidecars: Mapping[str, Mapping[str, Any]]) -> Processor | None:
    """Return the processor of a directory, or `None` if it has none."""
    name = next((name for name in PROCESSOR_NAMES if name in sidecars), None)
    return None if name is None else Processor(name, sidecars[name])


def assumed_preprocessing(channels: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the preprocessing for a directory without a processor, and a note that says so."""
    missing = f"no {PROCESSOR_NAMES[0]}"
    mean, std = _DEFAULTS["image_mean"], _DEFAULTS["image_std"]
    if channels != len(mean):
        note = f"{missing}: pixels in [0, 1] assumed for {channels} channels"
        return {"mean": [0.0] * channels, "std": [1.0] * channels}, (note,)
    note = f"{missing}: the default of Hugging Face assumed, mean {mean} and std {std}"
    return {"mean": mean, "std": std}, (note,)
