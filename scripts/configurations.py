"""Export random valid models of every family, and list what is refused or fails.

    python scripts/configurations.py                    150 models, and a table
    python scripts/configurations.py --count 20 --seed 7
    python scripts/configurations.py --only 30 53       some of them again, by their numbers

Sizes are odd, clips may have one frame and one channel, models one class or a thousand, a patch may
be as large as the image, the batch may be free, the preprocessing embedded, and the weights of a
checkpoint scaled by 1e-4 to 1e4. Every model is one that its family accepts. A verdict other than
pass counts, unless it is the model's own: the same model is no function in eager PyTorch, in fp32
(ill-conditioned) or in the precision (NaN, or random roundings of its steps err as much), or its
logits do not depend on the clip. The exit code is 1 if one is left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_rounding import explains

from exporter import ExportSpec
from exporter.errors import TsformerError
from exporter.load import load_model
from exporter.machine import environment
from exporter.pipeline import export
from exporter.results import Parity
from exporter.spec import BatchProfile
from model import save_checkpoint

FAMILIES = (
    "fast_timesformer",
    "facebookresearch",
    "huggingface",
    "timesformer_pytorch",
    "mmaction2",
    "frozen_in_time",
)
OWN = (  # in the reason of a verdict
    "the model's own",
    "do not depend on the input",
    "of eager PyTorch in this precision too",
)


@dataclass(frozen=True)
class Outcome:
    """One model: `pass`, `model's own`, `failed` or `refused`, and why."""

    options: dict[str, Any]
    state: str
    why: str


def draw(rng: np.random.Generator, family: str) -> dict[str, Any]:
    """Draw the options of a valid model."""
    patch = int(rng.choice([3, 4, 7, 8, 16]))
    rows, columns = (int(n) for n in rng.integers(1, 4, 2))
    heads = int(rng.integers(1, 4))
    options: dict[str, Any] = {
        "model": family,
        "patch_size": patch,
        "res": (patch * rows, patch * columns),
        "frames": int(rng.choice([1, 2, 3, 5, 8])),
        "channels": int(rng.integers(1, 5)),
        "num_classes": int(rng.choice([1, 2, 5, 51, 1000])),
        "depth": int(rng.integers(1, 4)),
        "dim": 12 * heads,
        "precision": str(rng.choice(["fp32", "fp32", "fp16", "bf16", "int8"])),
    }
    if family in ("fast_timesformer", "timesformer_pytorch"):
        options["dim_head"] = 12
    if family != "fast_timesformer":
        options["heads"] = heads
    if family == "fast_timesformer":
        options["attn"] = str(rng.choice(["fastformer", "performer", "regular"]))
        schemes = ["space", "joint", "divided", "local-global", "axial"]
        options["scheme"] = str(rng.choice(schemes))
    elif family not in ("timesformer_pytorch", "frozen_in_time"):
        options["scheme"] = str(rng.choice(["space", "joint", "divided"]))
    chance = rng.random(3)
    if chance[0] < 0.3:
        options["dynamic_batch"] = BatchProfile(1, 2, int(rng.integers(2, 6)))
    elif chance[0] < 0.5:
        options["batch"] = int(rng.integers(2, 4))
    if chance[1] < 0.25:
        options["embed_preprocess"] = True
    if chance[2] < 0.3:
        options["scaled"] = float(10.0 ** rng.integers(-4, 5))
    return options


def try_one(options: dict[str, Any], folder: Path) -> Outcome:
    """Export one model, and say what became of it."""
    given = {**options, "engine": "none", "bench_seconds": 0.0, "runtimes": ("onnxruntime",)}
    factor = given.pop("scaled", None)
    try:
        if factor is not None:
            given = scaled(given, factor, folder)
        spec = ExportSpec(**given)
        report = export(spec, folder / "out", force=True).report
    except TsformerError as error:
        return Outcome(options, "refused", str(error))
    except Exception as error:  # a crash is the worst refusal
        return Outcome(options, "refused", f"{type(error).__name__}: {error}")
    bad = [row for row in report.parity if row.verdict not in ("pass", "not-run")]
    why = "; ".join(f"{row.runtime}: {row.verdict}: {row.reason}" for row in bad)
    own = all(is_own(spec, row) for row in bad)
    return Outcome(options, "pass" if not bad else "model's own" if own else "failed", why)


def is_own(spec: ExportSpec, row: Parity) -> bool:
    """Whether a verdict is about the model, and not about its export."""
    told = row.verdict == "ill-conditioned" or any(words in row.reason for words in OWN)
    return told or explains(spec, row)


def scaled(options: dict[str, Any], factor: float, folder: Path) -> dict[str, Any]:
    """Write a checkpoint of the model with its first matrices scaled; return the options for it."""
    model = load_model(ExportSpec(**{**options, "embed_preprocess": False}))
    with torch.no_grad():
        matrices = [weight for weight in model.parameters() if weight.ndim > 1]
        for weight in matrices[: len(matrices) // 2]:
            weight *= factor
    path = folder / "scaled.safetensors"
    save_checkpoint(model, path)
    kept = ("precision", "batch", "dynamic_batch", "embed_preprocess", "engine", "bench_seconds")
    kept += ("runtimes",)
    return {"checkpoint": path, **{name: options[name] for name in kept if name in options}}


def main() -> int:
    """Export the models, print what is not a pass, and the counts."""
    parser = argparse.ArgumentParser(description="Export random valid models.")
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="the numbers of some models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    environment.available_flavours = cache(environment.available_flavours)  # a process each
    rng, counts = np.random.default_rng(arguments.seed), Counter[str]()
    for number in range(arguments.count):
        options = draw(rng, FAMILIES[number % len(FAMILIES)])
        if arguments.only and number not in arguments.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome = try_one(options, Path(folder))
        counts[outcome.state] += 1
        if outcome.state != "pass":
            print(
                f"{number:>4} {outcome.state:<12} {options}\n     {outcome.why[:400]}", flush=True
            )
    print(f"{counts.total()} models:", ", ".join(f"{n} {state}" for state, n in counts.items()))
    return int(counts["refused"] + counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
