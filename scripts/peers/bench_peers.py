r"""Time our exported graphs against their peers in pairs, and give an interval for each ratio.

    python scripts/peers/bench_peers.py                             paper semantics, 224 and 512 px
    python scripts/peers/bench_peers.py --resolutions 64 128 224 512 --batches 1 4 \
        --ours ours/onnxruntime --peers published/eager       against the published package
    python scripts/peers/bench_peers.py --mechanisms performer fastformer \
        --peers ours/onnxruntime@regular                            one mechanism against another
    python scripts/peers/bench_peers.py --model vit --precision int8      the base model, 8 x 224 px
    python scripts/peers/bench_peers.py --ours half/openvino-bf16 eight/openvino-bf16 \
        --peers published/eager published/eager-bf16                a CPU with bf16

A side is SOURCE/RUNTIME. It has the mechanism of the pair unless @MECHANISM follows. The sources:

    published   the computation of the published package (published.py; for vit: transformers)
    einsum      the same einsum form in paper semantics
    plain       our eager model; its ONNX graph comes from torch's own exporter
    ours        the graph that tsformer exports
    uncut       the same without some rewrites; OpenVINO runs it faster at small sizes
    half        the graph that tsformer exports for OpenVINO in bf16
    eight       the same in int8

The runtimes: eager, eager-bf16 (autocast), onnxruntime, openvino, openvino-bf16, and torch.compile
under four names. `compile` has default options. `frozen` has inductor's freezing. `unmatched` omits
inductor's pattern matcher, which can fail. `frozen-unmatched` has freezing and no pattern matcher.

Each pair runs in one or more processes of its own. A process runs the two sides in turn. A ratio
is the peer's seconds divided by ours: above 1, ours is faster. A pair with a side that is missing
or fails has a row with the reason.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sides import SOURCES, TRUTH_CLIPS, Pair
from timing import Figures, Rounds, measure, summarise

from exporter.machine import environment
from model.config import MECHANISM_NAMES

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"fast": (5, 128, 12), "vit": (8, 768, 12)}  # frames, dim, depth
NOTES = (
    "ratio: median over rounds of the peer's seconds over ours; low, high: its 95 % bootstrap, over"
    " processes and their rounds",
    f"rel_l2: logits of the first {TRUTH_CLIPS} clips against float64 of the side's own model",
    "published: this project's module of equal outputs and layout, in upstream semantics whatever"
    " ours are; for vit the class of transformers, with weights of its own",
    "others_busy_cores: what other processes took of the machine meanwhile",
)


def measure_all(pairs: Sequence[Pair], limit: float) -> Iterator[dict[str, Any]]:
    """Yield the row of each pair; adjacent pairs of one case share their exported graphs."""
    for _, case in itertools.groupby(pairs, lambda pair: replace(pair, ours="", peer="")):
        with tempfile.TemporaryDirectory() as folder:
            for pair in case:
                yield asdict(pair) | asdict(measure_pair(pair, Path(folder), limit))


def measure_pair(pair: Pair, folder: Path, limit: float) -> Figures:
    """Measure in `pair.processes` processes; stop at the first that fails."""
    parts = []
    for _ in range(pair.processes):
        parts.append(measure_apart(pair, folder, limit))
        if parts[-1].status != "timed":
            break
    return summarise(parts)


def measure_apart(pair: Pair, folder: Path, limit: float) -> Rounds:
    """Measure in a new process, so that settings and leaks of one runtime do not reach the next."""
    try:
        return Rounds(**run_child(__file__, pair, folder, limit))
    except ChildError as error:
        return Rounds("failed", str(error))


class ChildError(Exception):
    """A child process ended without a measurement."""


def run_child(script: str, pair: Pair, folder: Path, limit: float) -> dict[str, Any]:
    """Run `script --child` on a pair, in a process with `pair.threads` threads.

    Raises:
        ChildError: if the process fails, or takes longer than `limit` seconds.
    """
    command = [sys.executable, script, "--child", json.dumps(asdict(pair)), str(folder)]
    surroundings = os.environ | {"OMP_NUM_THREADS": str(pair.threads)}
    try:
        done = subprocess.run(
            command, env=surroundings, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"took longer than {limit:g} s") from error
    if done.returncode:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else "an error"
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise ChildError(f"the process ended with {ended}: {last[:300]}")
    return json.loads(done.stdout.splitlines()[-1])  # runtimes may print earlier lines


def find_closest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Find one row for each case: our better graph against its best peer (pure).

    A peer of another mechanism or of other semantics computes another function. It does not count.
    """
    cases: dict[tuple[object, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        bound = SOURCES.get(row["peer"].partition("/")[0])
        same = row["model"] == "vit" or bound in {None, row["semantics"]}
        if row["status"] == "timed" and same and "@" not in row["peer"]:
            key = tuple(row[name] for name in CASE)
            cases.setdefault(key, {}).setdefault(row["ours"], []).append(row)
    worst = [
        [min(against, key=lambda row: row["ratio"]) for against in ours.values()]
        for ours in cases.values()
    ]
    return [max(rows, key=lambda row: row["ratio"]) for rows in worst]


CASE = ("model", "mechanism", "resolution", "batch", "semantics", "precision")


def describe() -> dict[str, Any]:
    """Describe the machine and the software that give the figures."""
    facts = environment.describe()
    for package in ("openvino", "transformers"):
        try:
            facts["packages"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    git = ("git", "-C", str(ROOT))
    for name, command in {
        "commit": (*git, "rev-parse", "HEAD"),
        "uncommitted_changes": (*git, "status", "--porcelain"),
    }.items():
        done = subprocess.run(command, capture_output=True, text=True)
        facts[name] = done.stdout.strip() if done.returncode == 0 else None
    return facts | {"uncommitted_changes": bool(facts["uncommitted_changes"])}


def tell(script: str, given: Sequence[str], out: Path) -> list[str]:
    """Return the command for a results file, without folders of this machine."""
    return [Path(script).name, *(word for word in given if word not in {"--out", str(out)})]


def write(out: Path, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write everything to `out` as JSON, and the rows beside it as CSV."""
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {**facts, "notes": NOTES, "closest": find_closest(rows), "rows": rows}
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def line(row: Mapping[str, Any]) -> str:
    """Format one row of the printed table."""
    case = f"{row['mechanism']:<11}{row['resolution']:>4} px  batch {row['batch']:<3}"
    case += f"{row['semantics']:<9}{row['precision']:<5}{row['ours']:<17}{row['peer']:<24}"
    if row["status"] != "timed":
        return f"{case}{row['status']}: {row['reason']}"
    errors = "  ".join(f"{row[name]:.1e}" for name in ("ours_rel_l2", "peer_rel_l2"))
    return (
        f"{case}{row['ours_p50_ms']:9.2f}{row['peer_p50_ms']:10.2f} ms  {row['ratio']:5.2f}x "
        f"[{row['low']:.2f}, {row['high']:.2f}]  {errors}  {row['measured_rounds']} rounds"
    )


OURS = ("ours/onnxruntime", "ours/openvino")
PEERS = (
    "published/eager",
    "published/onnxruntime",
    "published/openvino",
    "einsum/eager",
    "einsum/compile",
    "plain/eager",
    "plain/onnxruntime",
    "plain/openvino",
    "plain/compile",
    "plain/frozen",
    "plain/unmatched",
    "plain/frozen-unmatched",
)


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time our exported graphs against their peers.")
    parser.add_argument("--model", choices=list(SIZES), default="fast")
    parser.add_argument("--mechanisms", nargs="+", choices=list(MECHANISM_NAMES))
    parser.add_argument("--resolutions", nargs="+", type=int)
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--semantics", nargs="+", choices=["paper", "upstream"], default=["paper"])
    parser.add_argument("--ours", nargs="+", default=list(OURS), metavar="SIDE")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), metavar="SIDE")
    parser.add_argument(
        "--precision", choices=["fp32", "int8"], default="fp32", help="of our graphs"
    )
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--processes", type=count, default=1, help="for each pair")
    parser.add_argument("--rounds", type=count, default=100, help="limit for each process")
    parser.add_argument("--seconds", type=float, default=20.0, help="start no round after this")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for each process")
    for name in ("--frames", "--dim", "--depth"):
        parser.add_argument(name, type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results" / "peers.json")
    parser.add_argument("--add", action="store_true", help="keep the earlier rows of --out")
    return parser.parse_args(arguments)


def list_pairs(asked: argparse.Namespace) -> list[Pair]:
    """List the pairs that a command line asks for; the pairs of one case are adjacent."""
    fast = asked.model == "fast"
    mechanisms = asked.mechanisms or (MECHANISM_NAMES if fast else ["regular"])
    resolutions = asked.resolutions or ([224, 512] if fast else [224])
    same: dict[str, Any] = {
        name: getattr(asked, name) or default
        for name, default in zip(("frames", "dim", "depth"), SIZES[asked.model], strict=True)
    }
    for name in ("model", "precision", "threads", "processes", "rounds", "seconds"):
        same[name] = getattr(asked, name)
    return [
        Pair(
            mechanism=mechanism,
            resolution=resolution,
            batch=batch,
            semantics=semantics,
            ours=ours,
            peer=peer,
            **same,
        )
        for resolution in resolutions
        for batch in asked.batches
        for semantics in asked.semantics
        for mechanism in mechanisms
        for ours in asked.ours
        for peer in asked.peers
        if peer not in {ours, f"{ours}@{mechanism}"}
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 if at least one pair was timed."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["--child"]:
        print(json.dumps(asdict(measure(Pair(**json.loads(given[1])), Path(given[2])))))
        return 0
    asked = parse(given)
    facts = {"environment": describe(), "commands": [tell(__file__, given, asked.out)]}
    # Every row has its context: with --add the rows of a file have several dates and commits.
    context = {name: facts["environment"][name] for name in ("date", "cpu", "commit")}
    rows: list[dict[str, Any]] = []
    if asked.add and asked.out.is_file():
        before = json.loads(asked.out.read_text(encoding="utf-8"))
        rows, facts["commands"] = before["rows"], before["commands"] + facts["commands"]
    for row in measure_all(list_pairs(asked), asked.limit):
        rows.append(row | context)
        write(asked.out, facts, rows)  # after each row, because the run may be stopped early
        print(line(row), flush=True)
    print("\nour better graph against the best of its peers, of the same semantics:")
    for row in find_closest(rows):
        print(line(row))
    return 0 if any(row["status"] == "timed" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
