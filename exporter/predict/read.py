"""A clip, or the reason why it cannot be read: one bad clip must not end the work on many."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from exporter.errors import TsformerError
from exporter.inputs.dataset import Source, name_of, read_source
from model.config import ClipConfig
from model.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False)
class ReadClip:
    """A clip in the form that the model takes, or the reason why it cannot be read.

    `array` is `(v, ...)` of v views, and None for a bad clip, whose `error` says why. `seconds` is
    the time of reading.
    """

    source: Source
    array: np.ndarray | None
    note: str = ""
    error: str = ""
    seconds: float = 0.0


def read_clip_or_reason(
    source: Source, config: ClipConfig, preprocessing: Preprocessing
) -> ReadClip:
    """Read one clip in this process; a bad clip is a result too."""
    started = time.perf_counter()
    array, note, error = None, "", ""
    try:
        array, note = read_source(source, config, preprocessing)
    except TsformerError as reason:
        error = str(reason)
    except Exception as reason:  # whatever a decoder raises is the fault of one clip
        error = " ".join(f"{name_of(source)}: {type(reason).__name__}: {reason}".split())[:300]
    return ReadClip(source, array, note, error, time.perf_counter() - started)
