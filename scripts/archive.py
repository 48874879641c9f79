"""Show that rows of an archive are the same however they are made, over kills too.

    python scripts/archive.py [--clips 2000] [--bad 20] [--kills 5] [--without-ray] [--out FILE]

The script makes short clips of the built-in task and some files that are no clips, exports the
trained model, and labels them: killed and resumed, with several jobs, shards and batches, and on
Ray with two workers, one of which is killed midway. The exit code is 1 if a clip has no row or two,
or if two ways give different rows.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clip_file import write_clip

from exporter.inputs.motion import motion_clips

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "scripts" / "checkpoints" / "motion-fastformer.safetensors"
SIDE, FRAMES = 64, 6
BATCH = 8
BAD = (b"", b"no clip\n" * 50, b"\0" * 4096)


def main(arguments: list[str] | None = None) -> int:
    """Label the archive in every way; return 1 if rows are lost, doubled or different."""
    parser = argparse.ArgumentParser(description="Compare rows of an archive.")
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--bad", type=int, default=20)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clips = make_clips(folder / "clips", given.clips, given.bad)
        tsformer("export", *EXPORT, "-o", str(folder / "export"))
        ways = run_all(folder, clips, given.kills, ray=not given.without_ray)
    print(json.dumps(ways, indent=2))
    if given.out:
        given.out.write_text(json.dumps(ways, indent=2) + "\n", encoding="utf-8")
    return int(not all(way["same_rows"] and way["every_clip_once"] for way in ways))


EXPORT = ("--checkpoint", str(CHECKPOINT), "--engine", "none", "--bench-seconds", "0")
EXPORT += ("--dynamic-batch", f"1:{BATCH}:{BATCH}", "--quiet")


def run_all(folder: Path, clips: int, kills: int, *, ray: bool) -> list[dict[str, Any]]:
    """Label in each way; the first one is what the others are compared with."""
    ways: list[dict[str, Any]] = []
    first: list[str] = []

    def add(name: str, outs: Sequence[Path], started: float, **more: object) -> None:
        rows = [row for out in outs for row in read_rows(out)]
        same = sorted(json.dumps({**row, "seconds": 0}, sort_keys=True) for row in rows)
        first.extend(() if first else same)
        ways.append(
            {
                "way": name,
                "rows": len(rows),
                "bad": sum(row["error"] is not None for row in rows),
                "every_clip_once": len(rows) == len({row["clip"] for row in rows}) == clips,
                "same_rows": same == first,
                "seconds": round(time.monotonic() - started, 1),
                "load": round(os.getloadavg()[0], 1),
                **more,
            }
        )
        print(json.dumps(ways[-1]), flush=True)

    def label(name: str, *options: str) -> Path:
        out = folder / f"{name}.jsonl"
        tsformer("label", *command(folder, out), *options)
        return out

    started = time.monotonic()
    out = folder / "killed.jsonl"
    options = ("--jobs", "1", "--batch", "1")
    seen = kill_and_resume(command(folder, out) + options, out, clips, kills)
    add("killed and resumed, jobs 1, batch 1", [out], started, rows_at_kills=seen)
    for jobs, batch in ((2, 1), (1, BATCH), (2, BATCH)):
        started = time.monotonic()
        how = ("--jobs", str(jobs), "--batch", str(batch))
        add(f"jobs {jobs}, batch {batch}", [label(f"{jobs}-{batch}", *how)], started)
    started = time.monotonic()
    outs = [label(f"shard-{i}", "--shard", f"{i}/3", "--jobs", "2") for i in (1, 2, 3)]
    add("shards 1/3, 2/3, 3/3, jobs 2", outs, started)
    if ray:
        started = time.monotonic()
        out = folder / "ray.jsonl"
        killed = run_on_ray(command(folder, out), out, clips // 3)
        add("Ray, two workers, one killed midway", [out], started, rows_at_kill=killed)
    return ways


def kill_and_resume(label: Sequence[str], out: Path, clips: int, kills: int) -> list[int]:
    """Run a command; kill it at `kills` places, and finish it. Return the rows at each kill."""
    seen = []
    for number in range(1, kills + 1):
        process = start("label", *label)
        wait_for_rows(process, out, clips * number // (kills + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(count_rows(out))
    tsformer("label", *label)
    return seen


def run_on_ray(label: Sequence[str], out: Path, wanted: int) -> int:
    """Label on two workers, and kill one of them when there are `wanted` rows."""
    process = start("label", *label, "--ray", "local", "--jobs", "2", "--batch", str(BATCH))
    wait_for_rows(process, out, wanted)
    seen, workers = count_rows(out), ray_workers(process.pid)
    print(f"workers {workers}: {workers[0]} is killed at {seen} rows", flush=True)
    os.kill(workers[0], signal.SIGKILL)
    if process.wait():
        raise RuntimeError("label --ray failed")
    return seen


def ray_workers(parent: int) -> list[int]:
    """Find the processes below `parent` that are actors of Ray with our name."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    below = {parent}
    for _ in rows:
        below |= {int(pid) for pid, of, _ in rows if int(of) in below}
    return [int(pid) for pid, _, what in rows if int(pid) in below and "ray::MapWorker" in what]


def wait_for_rows(process: subprocess.Popen[bytes], out: Path, wanted: int) -> None:
    """Wait until a command has written rows; it must still run then."""
    while count_rows(out) < wanted:
        if process.poll() is not None:
            raise RuntimeError(f"label ended with {process.returncode} before {wanted} rows")
        time.sleep(0.01)


def make_clips(folder: Path, count: int, bad: int) -> int:
    """Write clips of the built-in task, and files that are no clips at even distances."""
    every = count // bad if bad else count + 1
    made, _ = motion_clips(64, FRAMES, SIDE, SIDE, seed=9)
    for i in range(count):
        path = folder / f"{i % 16:02}" / f"{i:05}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i % every == every - 1 and i // every < bad:
            path.write_bytes(BAD[i // every % len(BAD)])
        else:
            pixels = np.roll(made[i % 64], 8 * (i // 64), axis=-1)
            images = (255 * np.moveaxis(pixels, 1, -1)).astype(np.uint8)
            write_clip(path, images, codec="mpeg4", pixel_format="yuv420p", rate=15)
    return count


def command(folder: Path, out: Path) -> tuple[str, ...]:
    """Return the arguments of `tsformer label` without the options of a way."""
    return (str(folder / "export"), str(folder / "clips"), "-o", str(out), "--quiet")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Start `tsformer` in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "exporter", *arguments], cwd=ROOT)


def tsformer(*arguments: str) -> None:
    """Run `tsformer` to its end; it must succeed."""
    if code := start(*arguments).wait():
        raise RuntimeError(f"tsformer {arguments[0]} ended with {code}")


def count_rows(out: Path) -> int:
    """Count the whole rows of a file that may not be there yet."""
    return out.read_bytes().count(b"\n") if out.exists() else 0


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Read the rows of a file."""
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
