"""Measure the demo models on the same motion in files of other lengths and frame rates.

    python scripts/motion_files.py    writes scripts/results/motion_files.json

A file is 1, 2 or 3 times as long as a clip of the training, and has 15, 30 or 60 frames per second.
Each is read by the sampling that the checkpoint stores, and by the centres of equal segments, which
is what a model gets whose sampling nobody knows. The exit code is 1 if an accuracy with the stored
sampling is below 98 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from clip_file import write_clip

from exporter.inputs.clips import read_for
from exporter.inputs.motion import FPS, motion_clips
from exporter.machine.environment import describe
from model import load_checkpoint
from model.classifier import VideoClassifier
from model.config import MECHANISM_NAMES
from model.preprocessing import Preprocessing

FOLDER = Path(__file__).resolve().parent
ATTENTIONS = MECHANISM_NAMES[::-1]  # the default first
LENGTHS, RATES = (1, 2, 3), (15, 30, 60)
CLIPS, SEED = 512, 3_000_000  # far from the seeds of training and of --eval motion
REQUIRED = 0.98
SAMPLINGS = ("stored", "uniform")


def main(arguments: list[str] | None = None) -> int:
    """Measure all models on all files; return 1 if one of them is below the required accuracy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "motion_files.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    paths = {name: FOLDER / "checkpoints" / f"motion-{name}.safetensors" for name in ATTENTIONS}
    models = {name: load_checkpoint(path) for name, path in paths.items()}
    rows = []
    for length in LENGTHS:
        for rate in RATES:
            rows += measure(models, length, rate, given.clips)
            for row in rows[-len(SAMPLINGS) * len(models) :]:
                print(json.dumps(row), flush=True)
    machine = describe()
    result = {"clips": given.clips, "seed": SEED, "date": machine["date"], "rows": rows}
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return int(any(row["sampling"] == "stored" and row["accuracy"] < REQUIRED for row in rows))


def measure(
    models: dict[str, VideoClassifier], length: int, rate: int, count: int
) -> list[dict[str, Any]]:
    """Give a row for each sampling and model: its accuracy on the files."""
    read: dict[str, list[np.ndarray]] = {sampling: [] for sampling in SAMPLINGS}
    labels = []
    config, stored = models[ATTENTIONS[0]].config, models[ATTENTIONS[0]].preprocessing
    unknown = replace(stored, sampling=None)
    frames = config.frames * length * rate // int(FPS)
    size = (config.height, config.width)
    with TemporaryDirectory() as folder:
        for path, label in write_clips(Path(folder), count, (frames, *size), rate):
            labels.append(label)
            for sampling, how in zip(SAMPLINGS, (stored, unknown), strict=True):
                read[sampling].append(read_for(config, cast("Preprocessing", how), path).array[0])
    return [
        {
            "attn": name,
            "length": length,
            "fps": rate,
            "sampling": sampling,
            "accuracy": accuracy(model, np.stack(read[sampling]), np.array(labels)),
        }
        for sampling in SAMPLINGS
        for name, model in models.items()
    ]


def write_clips(
    folder: Path, count: int, shape: tuple[int, int, int], rate: int
) -> Iterator[tuple[Path, int]]:
    """Write one lossless file after the other, and yield its path and its label."""
    path = folder / "clip.mkv"
    for number in range(count):
        finer = rate // int(FPS)
        clips, labels = motion_clips(1, *shape, seed=SEED, first=number, finer=finer)
        pixels = np.rint(255 * clips[0]).astype(np.uint8).transpose(0, 2, 3, 1)  # f h w c
        write_clip(path, pixels, codec="ffv1", pixel_format="bgr0", rate=rate)
        yield path, int(labels[0])


@torch.no_grad()
def accuracy(model: VideoClassifier, clips: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of clips that the model classifies as their label says."""
    logits = [model(part) for part in torch.from_numpy(clips).split(64)]
    return float((torch.cat(logits).argmax(-1).numpy() == labels).mean())


if __name__ == "__main__":
    sys.exit(main())
