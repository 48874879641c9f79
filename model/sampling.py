"""Which frames of a file a model sees, and how often a file is looked at.

This file imports the standard library only, so that programs without torch can use it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from model.config import ConfigError, check_choice, nearest

KINDS: Mapping[str, tuple[str, ...]] = {
    "uniform": ("centres", "middles", "medians", "starts"),
    "dense": ("steps", "window"),
}
PLACES = ("start", "centre", "end")
PAST_END = ("clamp", "loop")
AVERAGES = ("logits", "probabilities")
CROPS = (1, 3)
_MOST_CLIPS = 100
_SAMPLING = "uniform, dense:RATE or dense:RATE@FPS, as dense:32@30"
_VIEWS = "CLIPSxCROPS with 1 or 3 crops, as 3x1"


@dataclass(frozen=True)
class Sampling:
    """Which frames of a file make a clip of f frames.

    Attributes:
        kind: `uniform`: one frame from each of f equal segments of the whole file. `dense`: frames
            `rate` apart, from a window of the file.
        rule: Of uniform: `centres` or `starts` (Hugging Face) of f segments of N frames, `medians`
            of the whole frames of each (Frozen-in-Time), or `middles` of f segments of N - 1 frames
            (Something-Something of facebookresearch, LaViLa). Of dense: `steps` of exactly `rate`
            (mmaction2), or f places spread evenly over a `window` of f x `rate` frames
            (facebookresearch). By default the first.
        rate: Frames from one frame of a dense clip to the next.
        fps: Frames per second in which `rate` counts; None for the frames of the file.
        place: Where the window lies in the file: `start`, `centre` or `end`.
        past_end: What stands for a frame past the end: the last frame (`clamp`), or the frames from
            the first on (`loop`).

    Raises:
        ConfigError: if a value is not valid.
    """

    kind: str = "uniform"
    rule: str = ""
    rate: int = 1
    fps: float | None = None
    place: str = "centre"
    past_end: str = "clamp"

    def __post_init__(self) -> None:
        check_choice("sampling", self.kind, KINDS)
        object.__setattr__(self, "rule", self.rule or KINDS[self.kind][0])
        check_choice(f"rule of {self.kind} sampling", self.rule, KINDS[self.kind])
        check_choice("place of the window", self.place, PLACES)
        check_choice("reading past the end", self.past_end, PAST_END)
        if type(self.rate) is not int or self.rate < 1:
            raise ConfigError(f"rate of the sampling: got {self.rate!r}, expected at least 1")
        fps = self.fps
        if fps is not None and not (isinstance(fps, (int, float)) and 0 < fps < math.inf):
            raise ConfigError(f"frames per second of the sampling: got {fps!r}, expected above 0")

    @classmethod
    def parse(cls, text: str, base: Sampling | None = None) -> Sampling:
        """Read `uniform` or `dense:32@30`, with further words after colons, as `:start:loop`.

        What the text does not say is that of `base`, the sampling of the model's family.
        """
        kind, *words = text.strip().lower().split(":")
        wrong = f"sampling: got {text!r}, expected {_SAMPLING}"
        if kind not in KINDS:
            closest = nearest(kind, KINDS)
            raise ConfigError(f"{wrong}; did you mean {closest!r}?" if closest else wrong)
        alike = base is not None and base.kind == kind
        made: dict[str, Any] = {"kind": kind, "rule": base.rule if base and alike else ""}
        if base and alike:
            made |= {"place": base.place, "past_end": base.past_end}
        if kind == "dense":
            match = re.fullmatch(r"(\d{1,9})(?:@(\d+(?:\.\d+)?))?", words.pop(0) if words else "")
            if match is None:
                raise ConfigError(wrong)
            made |= {"rate": int(match[1]), "fps": float(match[2]) if match[2] else None}
        options = {"rule": KINDS[kind], "place": PLACES, "past_end": PAST_END}
        for word in words:
            name = next((name for name, values in options.items() if word in values), None)
            if name is None:
                known = ", ".join(itertools.chain(*options.values()))
                raise ConfigError(f"sampling: got {word!r} in {text!r}, expected one of {known}")
            made[name] = word
        try:
            return cls(**made)
        except ConfigError as error:
            raise ConfigError(f"sampling: {error}") from error

    def spacing(self, frames: int) -> float | None:
        """Return the seconds between neighbouring frames, or None if it depends on the file."""
        if self.kind == "uniform" or self.fps is None:
            return None
        steps = self.rate
        if self.rule == "window" and frames > 1:
            steps = (self.rate * frames - 1) / (frames - 1)
        return steps / self.fps

    @property
    def sentence(self) -> str:
        """Say for a report which frames are taken."""
        if self.kind == "uniform":
            return f"the frames are the {self.rule} of equal segments of the whole file"
        fps = "of the file" if self.fps is None else f"at {self.fps:g} frames per second"
        what = "frames apart" if self.rate > 1 else "frame apart"
        return f"the frames are {self.rate} {what} {fps}, from the {self.place} of the file"

    def __str__(self) -> str:
        """The text that `parse` reads, with every word."""
        if self.kind == "uniform":
            return f"uniform:{self.rule}"
        fps = "" if self.fps is None else f"@{Decimal(str(self.fps)):f}".removesuffix(".0")
        return f"dense:{self.rate}{fps}:{self.rule}:{self.place}:{self.past_end}"


@dataclass(frozen=True)
class Views:
    """How often a file is looked at; the outputs of all views are averaged.

    Attributes:
        clips: Clips at different times.
        crops: 1, the centre; or 3 along the longer side of a frame: its start, centre and end.
        average: What is averaged: `logits` or `probabilities`.

    Raises:
        ConfigError: if a value is not valid.
    """

    clips: int = 1
    crops: int = 1
    average: str = "logits"

    def __post_init__(self) -> None:
        if type(self.clips) is not int or not 1 <= self.clips <= _MOST_CLIPS:
            raise ConfigError(
                f"clips of the views: got {self.clips!r}, expected 1 to {_MOST_CLIPS}"
            )
        if self.crops not in CROPS:
            raise ConfigError(f"crops of the views: got {self.crops!r}, expected 1 or 3")
        check_choice("average of the views", self.average, AVERAGES)

    @property
    def count(self) -> int:
        """Number of views of a file: clips x crops."""
        return self.clips * self.crops

    @classmethod
    def parse(cls, text: str, base: Views | None = None) -> Views:
        """Read `3x1`, or `3x1:probabilities`; an average that is not given is that of `base`."""
        match = re.fullmatch(r"(\d{1,9})x(\d{1,9})(?::(\w+))?", text.strip().lower())
        if match is None:
            raise ConfigError(f"views: got {text!r}, expected {_VIEWS}")
        average = match[3] or (base.average if base else AVERAGES[0])
        try:
            return cls(int(match[1]), int(match[2]), average)
        except ConfigError as error:
            raise ConfigError(f"views: {error}") from error

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"{self.clips}x{self.crops}:{self.average}"
