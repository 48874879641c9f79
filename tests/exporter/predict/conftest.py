"""Make an export with a free batch and short clips once, for the tests of evaluate and label."""

from typing import cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from exporter import BatchProfile, ExportSpec
from exporter.pipeline import export

CLASSES = 12


def write_clip(path, level):
    """Write three lossless frames of 32 x 48 pixels, each of one gray level, with a gradient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    slope = np.linspace(0, 60, 48)[:, np.newaxis].astype(np.uint8)  # along the width
    with av.open(str(path), "w") as container:
        stream = cast("VideoStream", container.add_stream("ffv1", rate=25))
        stream.height, stream.width, stream.pix_fmt = 32, 48, "bgr0"
        for i in range(3):
            image = np.full((32, 48, 3), level + 10 * i, np.uint8) + slope * (i % 2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def flexible(tiny, tmp_path_factory):
    """Export a model of 12 classes with a batch of 1 to 4."""
    spec = ExportSpec(
        **tiny, attn="regular", num_classes=CLASSES, dynamic_batch=BatchProfile(1, 2, 4)
    )
    return export(spec, tmp_path_factory.mktemp("flexible") / "x").directory


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """Write ten clips in two folders, and two files that are no clips."""
    folder = tmp_path_factory.mktemp("archive")
    for i in range(10):
        write_clip(folder / ("a" if i % 3 else "b") / f"{i}.mkv", 15 * i)
    (folder / "a" / "notes.txt").write_text("no clip")
    (folder / "b" / "empty.mkv").touch()
    return folder
