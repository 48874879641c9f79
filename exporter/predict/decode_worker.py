"""A process that reads clips for `decode`: a path on each line of stdin, a clip on stdout.

A clip is a line of JSON, and the bytes of its array. Everything else that is printed goes to
stderr.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np

from exporter.files import child
from exporter.inputs.container import THREAD_TYPE
from exporter.predict.read import read_clip_or_reason


def main() -> None:
    """Read the clips that stdin names, until it ends."""
    parent, config, preprocessing = pickle.loads(bytes.fromhex(sys.stdin.readline()))
    child.die_with(parent)
    THREAD_TYPE.set("NONE")  # there is a process for each core
    with os.fdopen(os.dup(1), "wb", buffering=2**20) as out:
        os.dup2(2, 1)  # what a library prints must not stand among the answers
        out.write(b"ready\n")
        out.flush()
        for line in sys.stdin:
            named = json.loads(line)
            source = named if isinstance(named, int) else Path(named)
            clip = read_clip_or_reason(source, config, preprocessing)
            told = {"note": clip.note, "error": clip.error, "seconds": clip.seconds}
            array = None if clip.array is None else np.ascontiguousarray(clip.array)
            told["shape"] = None if array is None else array.shape
            if array is not None:
                told["dtype"] = array.dtype.str
            out.write(json.dumps(told).encode() + b"\n")
            if array is not None:
                out.write(array.data.cast("B"))
            out.flush()


if __name__ == "__main__":
    main()
