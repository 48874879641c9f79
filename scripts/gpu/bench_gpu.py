"""Time every runtime of a GPU machine on the same models and clips, side by side.

    python scripts/gpu/bench_gpu.py --time-limit 500
    python scripts/gpu/bench_gpu.py --device cpu --quick     runs the code on a CPU, tiny models

Set PYTHONPATH to the project's directory where tsformer is not installed.

Times cover the device alone: CUDA events measure them, and clips and results stay on the device.
The copy of the clips to the device has its own row. Each round times every runtime of a case
once. A runtime that is missing, that fails, or that is skipped for lack of time has a row with
the reason.

The runtime "eager upstream semantics" computes the function of the published FastTimeSformer with
this project's code. It does not run the published package.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from runtimes import RUNTIMES
from subject import PRECISIONS, QUICK, Case, Sizes, Subject
from timing import Deadline, Row, Status, describe_error, measure

from exporter.machine import environment
from model.config import MECHANISM_NAMES

ROOT = Path(__file__).resolve().parents[2]
NOTES = (
    "eager upstream semantics: the published function in this project's code, not the package",
    "errors: relative L2 of the logits against float64 eager of the same semantics and clips",
    "fp16, bf16: as exported: products in it; tokens, norms, softmax, clips and logits in float32",
    "times: milliseconds per batch, of the device alone; the copy of the clips is a row of its own",
)


def measure_all(
    cases: Sequence[Case],
    runtimes: Sequence[str],
    sizes: Sizes,
    device: torch.device,
    deadline: Deadline,
) -> Iterator[list[Row]]:
    """Yield the rows of each case; after the deadline each row says that it was left out."""
    for case in cases:
        rows = partial(_rows_of_all, case, runtimes)
        if deadline.left() <= 0:
            yield rows("left out", deadline.reason)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield measure(Subject(case, sizes, device, Path(folder)), runtimes, deadline)
            except Exception as error:  # for example out of memory; other cases may still work
                yield rows("failed", describe_error(error))
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _rows_of_all(case: Case, runtimes: Sequence[str], status: Status, reason: str) -> list[Row]:
    return [Row(**asdict(case), runtime=name, status=status, reason=reason) for name in runtimes]


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the software that give the figures."""
    git = ("git", "-C", str(ROOT))
    facts = environment.describe() | {
        "commit": _ask(*git, "rev-parse", "HEAD"),
        "uncommitted_changes": bool(_ask(*git, "status", "--porcelain")),
    }
    if device.type == "cpu":
        return facts | {"device": facts["cpu"], "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    driver = _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return facts | {
        "device": properties.name,
        "device_memory_gb": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _ask(*command: str) -> str | None:
    """Return the output of a command, or None where the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write(out: Path, facts: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write everything to `out` as JSON, and the rows beside it as CSV."""
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {**facts, "notes": NOTES, "rows": [asdict(row) for row in rows]}
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    context = {name: facts["environment"][name] for name in ("date", "device", "commit")}
    names = [*(field.name for field in fields(Row)), *context]
    with out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), **context} for row in rows)


def show(row: Row) -> None:
    """Print one row."""
    case = f"{row.mechanism:<11}{row.resolution:>4} px  batch {row.batch:<3}{row.precision}"
    what = f"{row.status}: {row.reason}"
    if row.p50_ms is not None:
        speedup = f"{row.speedup:6.2f}x" if row.speedup else ""
        error = f"error {row.rel_l2:.1e}" if row.rel_l2 is not None else row.reason
        what = f"{row.p50_ms:9.3f} ms  {speedup}  {error}"
    print(f"{case}  {row.runtime:<32}  {what}", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time every runtime of a GPU machine.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny models, few rounds")
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results" / "gpu.json")
    for name, choices in (
        ("--mechanisms", MECHANISM_NAMES),
        ("--precisions", PRECISIONS),
        ("--runtimes", RUNTIMES),
    ):
        parser.add_argument(name, nargs="+", choices=list(choices), default=list(choices))
    parser.add_argument("--resolutions", nargs="+", type=int, help="default: 224 512; quick: 32")
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 1])
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 if at least one runtime was timed."""
    asked = parse(arguments)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device; --device cpu --quick tries the script without one", file=sys.stderr)
        return 2
    deadline = Deadline(asked.time_limit)
    sizes = QUICK if asked.quick else Sizes()
    cases = [
        Case(mechanism, resolution, batch, precision)
        for resolution in asked.resolutions or ([32] if asked.quick else [224, 512])
        for batch in asked.batches
        for precision in asked.precisions
        for mechanism in asked.mechanisms
    ]
    facts = {"environment": describe(device), "settings": asdict(sizes)}
    rows: list[Row] = []
    with torch.no_grad(), on_own_stream(device):
        for made in measure_all(cases, asked.runtimes, sizes, device, deadline):
            rows += made
            write(asked.out, facts, rows)  # after every case, because the run may be stopped early
            for row in made:
                show(row)
    counts = Counter(row.status for row in rows)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    print(f"{asked.out} and .csv")
    return 0 if counts["timed"] else 1


def on_own_stream(device: torch.device) -> AbstractContextManager[object]:
    """Select a stream other than the default; CUDA graphs and TensorRT cannot use the default."""
    if device.type == "cpu":
        return nullcontext()
    torch.cuda.set_device(device)
    return torch.cuda.stream(torch.cuda.Stream(device))


if __name__ == "__main__":
    sys.exit(main())
