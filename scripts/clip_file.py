"""Write frames into a video file: the clips of the scripts and of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream


def write_clip(path: Path, images: np.ndarray, *, codec: str, pixel_format: str, rate: int) -> None:
    """Write images `(f, h, w, 3)` uint8; `rate` is in frames per second."""
    with av.open(str(path), "w") as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=rate))
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], pixel_format
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
