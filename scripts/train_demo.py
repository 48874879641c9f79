"""Train the small models of the demo, the tests and the tables on synthetic clips.

    python scripts/train_demo.py [fastformer performer regular] [--out scripts/checkpoints]

The script writes one checkpoint for each mechanism. It writes the measured figures beside them,
to motion.json. The exit code is 1 if a model has less than 95 % accuracy on the held-out clips.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporter.inputs.motion import FPS, MOTION_LABELS, motion_clips
from exporter.machine.environment import describe
from model import FastTimeSformer, save_checkpoint
from model.classifier import VideoClassifier
from model.config import MECHANISM_NAMES, MechanismName
from model.preprocessing import Preprocessing
from model.sampling import Sampling

OUT = Path(__file__).resolve().parent / "checkpoints"
PREPROCESSING = Preprocessing(
    mean=(0.35,) * 3,  # near the task's pixel statistics
    std=(0.2,) * 3,
    sampling=Sampling("dense", rate=1, fps=FPS),
    spacing=1 / FPS,
)
REQUIRED_ACCURACY = 0.95
HELD_OUT_CLIPS, HELD_OUT_SEED = 2048, 0  # training batches use the seeds 1, 2, 3 and so on
LOG_EVERY = 100


@dataclass(frozen=True)
class Recipe:
    """The settings of a training; `seed` makes the initial weights."""

    steps: int = 1500
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.15  # fraction of the steps in which the learning rate grows
    max_norm: float = 1.0  # gradients are clipped to this norm
    seed: int = 0


RECIPES: dict[MechanismName, Recipe] = {
    "fastformer": Recipe(steps=2000, learning_rate=3e-3),
    "performer": Recipe(steps=1800),
    "regular": Recipe(),
}


def main(arguments: list[str] | None = None) -> int:
    """Train the requested models; return 1 if one of them has too low an accuracy."""
    parser = argparse.ArgumentParser(description="Train small models on synthetic clips.")
    parser.add_argument("mechanisms", nargs="*", metavar="mechanism", help="default: all three")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    mechanisms = given.mechanisms or list(RECIPES)
    if unknown := set(mechanisms) - set(RECIPES):
        parser.error(f"got {', '.join(sorted(unknown))}, expected {', '.join(MECHANISM_NAMES)}")
    # One thread: a second core makes the clips, and sums do not depend on the number of cores.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    given.out.mkdir(parents=True, exist_ok=True)
    results = [train_and_save(mechanism, given.out) for mechanism in mechanisms]
    return int(any(result["accuracy"] < REQUIRED_ACCURACY for result in results))


def train_and_save(mechanism: MechanismName, out: Path) -> dict[str, Any]:
    """Train and measure one model, and write its checkpoint and its entry in motion.json."""
    recipe = RECIPES[mechanism]
    print(f"{mechanism}: {recipe.steps} steps of {recipe.batch} clips", flush=True)
    start = time.perf_counter()
    model = build(mechanism, recipe.seed)
    for step, loss, share in train(model, recipe):
        if step % LOG_EVERY == 0:
            seconds = time.perf_counter() - start
            line = f"  step {step:5}  loss {loss:.3f}  accuracy {share:.3f}  {seconds:4.0f} s"
            print(line, flush=True)
    seconds = time.perf_counter() - start
    path = out / f"motion-{mechanism}.safetensors"
    save_checkpoint(model, path)
    result = measured(model, recipe, seconds)
    record(out / "motion.json", mechanism, result)
    print(f"  held out {result['accuracy']:.4f}, {path.stat().st_size / 1e6:.2f} MB: {path}")
    return result


def build(mechanism: MechanismName, seed: int) -> VideoClassifier:
    """Make a fresh model with fewer than 250,000 parameters and with the task's labels."""
    torch.manual_seed(seed)
    model = FastTimeSformer(
        frames=5,
        channels=3,
        height=64,
        width=64,
        num_classes=len(MOTION_LABELS),
        dim=64,
        dim_head=32,
        depth=2,
        patch_size=16,
        drop_path=0.0,  # with two blocks, dropping one would remove half of the model
        attn_mechanism=mechanism,
    )
    model.preprocessing, model.labels = PREPROCESSING, MOTION_LABELS
    return model


def train(model: VideoClassifier, recipe: Recipe) -> Iterator[tuple[int, float, float]]:
    """Train in place; yield each step, with mean loss and accuracy since the last printed line."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=recipe.warmup
    )
    sums = torch.zeros(2)
    for step, (clips, labels) in enumerate(batches(model, recipe), start=1):
        logits = model(clips)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_norm)
        optimizer.step()
        schedule.step()
        sums += torch.stack((loss.detach(), correct(logits, labels).mean()))
        since = (step - 1) % LOG_EVERY + 1
        yield step, float(sums[0]) / since, float(sums[1]) / since
        if since == LOG_EVERY:
            sums.zero_()


def batches(model: VideoClassifier, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield new clips for each step; a thread makes them during the previous step."""
    with ThreadPoolExecutor(max_workers=1) as maker:
        seeds = range(1, recipe.steps + 1)
        coming = maker.submit(labelled_clips, model, recipe.batch, seeds[0])
        for seed in seeds[1:]:
            ready = coming.result()
            coming = maker.submit(labelled_clips, model, recipe.batch, seed)
            yield ready
        yield coming.result()


def labelled_clips(model: VideoClassifier, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Make normalised clips of the task, `(n, f, c, h, w)`, and their labels `(n,)`."""
    size, preprocessing = model.config, model.preprocessing
    clips, labels = motion_clips(
        count, size.frames, size.height, size.width, seed=seed, channels=size.channels
    )
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
    )
    return (torch.from_numpy(clips) - mean) / std, torch.from_numpy(labels)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Give 1 if the largest logit is the label's, else 0: `(n, classes), (n,) -> (n,)`."""
    return (logits.argmax(-1) == labels).float()


@torch.no_grad()
def accuracy(model: VideoClassifier, clips: Tensor, labels: Tensor) -> float:
    """Return the fraction of clips `(n, f, c, h, w)` that the model classifies as `(n,)`."""
    model.eval()
    return float(correct(torch.cat([model(part) for part in clips.split(64)]), labels).mean())


def measured(model: VideoClassifier, recipe: Recipe, seconds: float) -> dict[str, Any]:
    """Measure the accuracy on the held-out clips, and add the context of the figure."""
    held_out = labelled_clips(model, HELD_OUT_CLIPS, HELD_OUT_SEED)
    machine = describe()
    return {
        "accuracy": round(accuracy(model, *held_out), 4),
        "held_out_clips": HELD_OUT_CLIPS,
        "held_out_seed": HELD_OUT_SEED,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": recipe.steps,
        "batch": recipe.batch,
        "seed": recipe.seed,
        "seconds": round(seconds, 1),
        "date": machine["date"],
        "cpu": machine["cpu"],
        "cores": machine["cores"],
        "torch": machine["packages"]["torch"],
    }


def record(path: Path, mechanism: str, result: dict[str, Any]) -> None:
    """Set the entry of one mechanism; keep the other entries."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = dict(sorted({**results, mechanism: result}.items()))
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
