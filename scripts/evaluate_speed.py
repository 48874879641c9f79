"""Compare the speed of `evaluate` with one process that reads and runs clips one after the other.

    python scripts/evaluate_speed.py [--clips 512] [--rounds 5] [--out FILE]

The script writes clips of the built-in task to files, in numbered folders, exports the trained
model, and measures in turn: `Predictor.predict`, which reads each clip and then runs a batch, in
one process; the same in a process for each core at once, each with its share of the clips, which is
what the machine can do; `evaluate` with a process for each core that reads, at batch 8 and at batch
1; and the run alone, of clips in memory, at both batches. numpy has one thread in all of them.

The ratios are medians over the rounds. Two cores of a shared machine often do less than twice the
work of one. So the exit code is 1 if `evaluate` is less than 1.8 times as fast as one process, and
also less than 0.9 times as fast as the separate processes. It is 1 too if a batch of 8 is slower
than a batch of 1, or if an accuracy differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported, as in the processes that read

import numpy as np
from clip_file import write_clip

from exporter.inputs.container import THREAD_TYPE
from exporter.inputs.dataset import Dataset, read_source
from exporter.inputs.motion import motion_clips
from exporter.machine.cores import usable_cores
from exporter.predict import Predictor
from exporter.predict.evaluate import Evaluation, Subject, evaluate, open_data

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "scripts" / "checkpoints" / "motion-fastformer.safetensors"
# A file shows each of the five frames 60 times, with noise. It has the frames, the pixels and the
# codec of a clip of Kinetics: 10 seconds of 30 frames of 340 x 256 pixels, in H.264.
SIDE, FRAMES, REPEATS, RATE = 296, 5, 60, 15
DIFFERENT, BATCH = 64, 8
OF_ONE, OF_SEPARATE = 1.8, 0.9  # the speed that is required; one of both is enough
RATIOS = {
    "of_one_process": ("evaluate_batch_8", "one_process"),
    "of_separate_processes": ("evaluate_batch_8", "separate_processes"),
    "run_at_8_of_run_at_1": ("run_batch_8", "run_batch_1"),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure in rounds; return 1 if evaluate is not fast enough."""
    parser = argparse.ArgumentParser(description="Measure the speed of evaluate.")
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_clips(folder / "clips", given.clips)
        command = [sys.executable, "-m", "exporter", "export", "--checkpoint", str(CHECKPOINT)]
        command += ["--engine", "none", "--bench-seconds", "0", "--quiet"]
        command += ["--dynamic-batch", f"1:{BATCH}:{BATCH}", "-o", str(folder / "export")]
        subprocess.run(command, cwd=ROOT, check=True)
        rounds = [measure(folder) for _ in range(given.rounds)]
    ratios = {
        name: float(np.median([row[ours] / row[other] for row in rounds]))
        for name, (ours, other) in RATIOS.items()
    }
    found = {"clips": given.clips, "cores": usable_cores(), "ratios": ratios, "rounds": rounds}
    print(json.dumps(found, indent=2))
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    fast = ratios["of_one_process"] >= OF_ONE or ratios["of_separate_processes"] >= OF_SEPARATE
    batched = ratios["run_at_8_of_run_at_1"] >= 1
    return int(not (fast and batched and all(row["same_accuracy"] for row in rounds)))


def measure(folder: Path) -> dict[str, Any]:
    """Measure every way once, in clips per second."""
    jobs = usable_cores() or 1
    THREAD_TYPE.set("NONE")  # one process decodes with one thread
    with (
        Predictor(folder / "export", batch=BATCH) as eight,
        Predictor(folder / "export", batch=1) as one,
    ):
        dataset = open_data(str(folder / "clips"), eight.card)
        started, loads = time.perf_counter(), [os.getloadavg()[0]]
        first = [best.classes[0].index for best in eight.predict(map(str, paths(dataset)), 1)]
        serial = len(first) / (time.perf_counter() - started)
        loads.append(os.getloadavg()[0])
        separate = run_separately(folder / "export", paths(dataset), jobs)
        loads.append(os.getloadavg()[0])
        at_8, at_1 = (run(model, dataset, jobs) for model in (eight, one))
        loads.append(os.getloadavg()[0])
        right = np.mean(
            [best == clip.target[0] for best, clip in zip(first, dataset.clips, strict=True)]
        )
        figures = {each.judged[0].metrics.top1 for each in (at_8, at_1)}
        return {
            "one_process": serial,
            "separate_processes": separate,
            "evaluate_batch_8": speed(at_8),
            "evaluate_batch_1": speed(at_1),
            "run_batch_8": run_alone(eight, dataset),
            "run_batch_1": run_alone(one, dataset),
            "jobs": jobs,
            "top1": float(right),
            "same_accuracy": figures == {float(right)},
            "loads": [round(load, 1) for load in loads],
        }


def run(model: Predictor, dataset: Dataset, jobs: int) -> Evaluation:
    """Evaluate with worker processes, which start within the time."""
    card = model.card
    subject = Subject(card.config, card.preprocessing, card.task, card.labels)
    return evaluate([("", model.batches)], subject, dataset, jobs=jobs)


def run_separately(export: Path, files: Sequence[Path], count: int) -> float:
    """Read and run clips in processes that share nothing; return the sum of their speeds."""
    context = multiprocessing.get_context("spawn")
    ready, speeds = context.Barrier(count), context.Queue()
    shares = [files[place::count] for place in range(count)]
    processes = [
        context.Process(target=run_share, args=(export, share, ready, speeds)) for share in shares
    ]
    for process in processes:
        process.start()
    total = sum(speeds.get(timeout=600) for _ in processes)
    for process in processes:
        process.join()
    return total


def run_share(export: Path, files: Sequence[Path], ready: Barrier, speeds: Queue[float]) -> None:
    """Read and run clips in this process, at the same time as the others."""
    THREAD_TYPE.set("NONE")
    with Predictor(export, batch=BATCH, threads=1) as model:
        list(model.predict(map(str, files[:BATCH]), 1))  # imports, and first runs
        ready.wait()
        started = time.perf_counter()
        list(model.predict(map(str, files), 1))
        speeds.put(len(files) / (time.perf_counter() - started))


def run_alone(model: Predictor, dataset: Dataset) -> float:
    """Run clips in memory in batches; return clips per second, the best of three passes."""
    card = model.card
    read = [read_source(path, card.config, card.preprocessing)[0] for path in paths(dataset)[:64]]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for at in range(0, len(read), model.batches.most):
            model.batches.logits(read[at : at + model.batches.most])
        seconds.append(time.perf_counter() - started)
    return len(read) / min(seconds)


def speed(found: Evaluation) -> float:
    """Return the clips per second of an evaluation."""
    return found.clips_read / found.seconds


def paths(dataset: Dataset) -> list[Path]:
    """Return the files of a dataset."""
    return [clip.source for clip in dataset.clips if isinstance(clip.source, Path)]


def make_clips(folder: Path, count: int) -> None:
    """Write clips in H.264 into a folder for each class: `DIFFERENT` clips, and copies of them."""
    made, labels = motion_clips(min(count, DIFFERENT), FRAMES, SIDE, SIDE, seed=9)
    drawn = np.random.Generator(np.random.PCG64(0))
    noise = 2 * drawn.standard_normal((FRAMES * REPEATS, SIDE, SIDE, 3), np.float32)
    first: list[Path] = []
    for i in range(count):
        path = folder / str(labels[i % DIFFERENT]) / f"{i:04}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < DIFFERENT:
            frames = np.repeat(np.moveaxis(made[i], 1, -1), REPEATS, axis=0)
            images = (255 * frames + noise).clip(0, 255).astype(np.uint8)
            write_clip(path, images, codec="libx264", pixel_format="yuv420p", rate=RATE * REPEATS)
            first.append(path)
        else:
            shutil.copyfile(first[i % DIFFERENT], path)


if __name__ == "__main__":
    sys.exit(main())
