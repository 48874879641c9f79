"""Make an export with a free batch and short clips once, for the tests of evaluate and label."""

import numpy as np
import pytest

from exporter import BatchProfile, ExportSpec
from exporter.pipeline import export

CLASSES = 12


def frames(level):
    """Three frames of 32 x 48 pixels, each of one gray level, the second with a gradient."""
    slope = np.linspace(0, 60, 48)[:, np.newaxis].astype(np.uint8)  # along the width
    return [np.full((32, 48, 3), level + 10 * i, np.uint8) + slope * (i % 2) for i in range(3)]


@pytest.fixture(scope="session")
def flexible(tiny, tmp_path_factory):
    """Export logits of 12 classes and features, with a batch of 1 to 4."""
    spec = ExportSpec(
        **tiny,
        attn="regular",
        num_classes=CLASSES,
        outputs=("logits", "features"),
        dynamic_batch=BatchProfile(1, 2, 4),
    )
    return export(spec, tmp_path_factory.mktemp("flexible") / "x").directory


@pytest.fixture(scope="session")
def archive(tmp_path_factory, write_clip):
    """Write ten clips in two folders, and two files that are no clips."""
    folder = tmp_path_factory.mktemp("archive")
    for i in range(10):
        write_clip(folder / ("a" if i % 3 else "b") / f"{i}.mkv", frames(15 * i))
    (folder / "a" / "notes.txt").write_text("no clip")
    (folder / "b" / "empty.mkv").touch()
    return folder
