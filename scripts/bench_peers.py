r"""Time our exported graphs against their peers, pair by pair, and say how sure the ratios are.

    python scripts/bench_peers.py                                   paper semantics, 224 and 512 px
    python scripts/bench_peers.py --resolutions 64 128 224 512 --batches 1 4 \
        --ours ours/onnxruntime --peers published/eager             against the published package
    python scripts/bench_peers.py --mechanisms performer fastformer \
        --peers ours/onnxruntime@regular                            one mechanism against another
    python scripts/bench_peers.py --model vit --precision int8      the base model, 8 x 224 px

A side is SOURCE/RUNTIME, of the mechanism of the pair or @MECHANISM. The sources:

    published   what the published package computes (published.py; for vit that of transformers)
    einsum      the same plain form in paper semantics
    plain       our eager model; for ONNX as torch's own exporter writes it
    ours        the graph that tsformer exports

and the runtimes eager, onnxruntime, openvino, and torch.compile as compile, frozen, unmatched and
frozen-unmatched (with inductor's freezing, and without its pattern matcher, which can fail).

Each pair has a process of its own, which runs its two sides in turn. A ratio is the peer's seconds
over ours: above 1, ours is faster. A side that is missing or fails is a row with the reason.
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
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from published import HuggingFaceTimeSformer, as_published
from torch import nn

from exporter import environment
from exporter.contention import Contention
from exporter.inputs import synthetic_inputs
from exporter.load import rewrite_for_export
from exporter.quantize import quantize
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.spec import DEFAULT_OPSET, ExportSpec
from exporter.to_onnx import export_onnx
from model import FastTimeSformer, TimeSformerViT
from model.classifier import VideoClassifier
from model.config import MECHANISM_NAMES

ROOT = Path(__file__).resolve().parent.parent
WARMUP_RUNS, MIN_ROUNDS = 3, 5
SETTLE_SECONDS = 0.005  # the threads of one runtime spin on for a while, and would slow the other
TRUTH_CLIPS = 2  # of a batch: float64 takes long
RESAMPLES = 2000
SIZES = {"fast": (5, 128, 12), "vit": (8, 768, 12)}  # frames, dim, depth
# The semantics that a source is bound to, if any.
SOURCES = {"published": "upstream", "einsum": "paper", "plain": None, "ours": None}
NOTES = (
    "ratio: median over rounds of the peer's seconds over ours; low, high: its 95 % bootstrap",
    f"rel_l2: logits of the first {TRUTH_CLIPS} clips against float64 of the side's own model",
    "published: this project's module of equal outputs and layout, in upstream semantics whatever"
    " ours are; for vit the class of transformers, with weights of its own",
    "others_busy_cores: what other processes took of the machine meanwhile",
)
FROZEN = {"freezing": True}  # the weights may be laid out beforehand
# inductor (torch 2.13) fails on attention over 5 axes when it matches the pattern.
UNMATCHED = {"pattern_matcher": False}
Run = Callable[[], np.ndarray]  # one run on the clips of a pair; gives its logits


class UnavailableError(Exception):
    """A side that is not installed, or that there is not."""


@dataclass(frozen=True)
class Pair:
    """What one process measures."""

    model: str
    mechanism: str
    resolution: int
    batch: int
    semantics: str
    ours: str
    peer: str
    precision: str
    threads: int
    rounds: int
    seconds: float
    frames: int
    dim: int
    depth: int


class Side(NamedTuple):
    """One side of a pair, its name read; the semantics are its own."""

    source: str
    runtime: str
    mechanism: Any  # one of MECHANISM_NAMES
    semantics: Any


def resolve(name: str, pair: Pair) -> Side:
    """Read `SOURCE/RUNTIME[@MECHANISM]`."""
    what, _, mechanism = name.partition("@")
    source, _, runtime = what.partition("/")
    side = Side(source, runtime, mechanism or pair.mechanism, SOURCES.get(source) or pair.semantics)
    known = source in SOURCES and runtime in RUNTIMES and side.mechanism in MECHANISM_NAMES
    if not known or (source == "ours" and runtime not in {"onnxruntime", "openvino"}):
        raise UnavailableError(f"there is no {name!r}")
    return side


# --- the sides


def make_module(side: Side, pair: Pair) -> nn.Module:
    """The eager module of a side in float32, with the same weights each time."""
    torch.manual_seed(0)
    res, frames, dim, depth = pair.resolution, pair.frames, pair.dim, pair.depth
    if pair.model == "vit":
        heads = max(1, dim // 64)
        vit = TimeSformerViT(
            frames, res, res, dim=dim, depth=depth, heads=heads, attn=side.mechanism
        )
        if side.source == "einsum":
            raise UnavailableError("vit has no plain einsum form")
        return (HuggingFaceTimeSformer(vit.config) if side.source == "published" else vit).eval()
    model = FastTimeSformer(
        frames,
        3,
        res,
        res,
        num_classes=2,
        dim=dim,
        depth=depth,
        attn_mechanism=side.mechanism,
        semantics=side.semantics,
    ).eval()
    return as_published(model) if side.source in {"published", "einsum"} else model


def run_eager(side: Side, pair: Pair, video: np.ndarray, _folder: Path) -> Run:
    """PyTorch as it is."""
    module, clips = make_module(side, pair), torch.from_numpy(video)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return module(clips).numpy()

    return run


def run_compiled(
    side: Side,
    pair: Pair,
    video: np.ndarray,
    _folder: Path,
    *,
    options: dict[str, Any] | None = None,
) -> Run:
    """`torch.compile` for CPU, with options of inductor."""
    module = torch.compile(make_module(side, pair), dynamic=False, options=options)
    clips = torch.from_numpy(video)
    return lambda: module(clips).numpy()


def run_onnxruntime(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> Run:
    """ONNX Runtime on the CPU."""
    runner = OnnxRuntimeRunner(find_graph(side, pair, video, folder), threads=pair.threads)
    return lambda: runner.run({"video": video})["logits"]


def run_openvino(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> Run:
    """OpenVINO in float32, which is not its default, set for latency."""
    try:
        import openvino  # pyright: ignore[reportMissingImports]  # an optional peer
    except ImportError as error:
        raise UnavailableError("openvino is not installed") from error
    settings = {
        "INFERENCE_NUM_THREADS": pair.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    graph = find_graph(side, pair, video, folder)
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
    return lambda: request.infer([video], share_inputs=True, share_outputs=True)[0]


RUNTIMES: Mapping[str, Callable[[Side, Pair, np.ndarray, Path], Run]] = {
    "eager": run_eager,
    "compile": run_compiled,
    "frozen": partial(run_compiled, options=FROZEN),
    "unmatched": partial(run_compiled, options=UNMATCHED),
    "frozen-unmatched": partial(run_compiled, options=FROZEN | UNMATCHED),
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
}


def find_graph(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> Path:
    """The ONNX file of a side, exported unless another pair has done so."""
    path = folder / f"{'-'.join((side.source, side.mechanism, side.semantics))}.onnx"
    if not path.exists():
        module, part = make_module(side, pair), path.with_suffix(".part")
        if side.source == "ours":
            export_ours(module, part, torch.from_numpy(video), pair.precision)
        else:
            export_plain(module, part, torch.from_numpy(video))
        part.rename(path)
    return path


def export_plain(module: nn.Module, path: Path, video: torch.Tensor) -> None:
    """What torch writes by itself, with the optimisation that is its default."""
    names: dict[str, Any] = {"input_names": ["video"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (video,), dynamo=True, verbose=False, **names)
    assert program is not None
    program.save(path)


def export_ours(module: nn.Module, path: Path, video: torch.Tensor, precision: str) -> None:
    """What the product writes."""
    assert isinstance(module, VideoClassifier)
    spec = ExportSpec(batch=len(video), precision=precision)
    rewritten, _ = rewrite_for_export(spec, module)
    export_onnx(rewritten, {"video": video}, path, opset=DEFAULT_OPSET)
    if precision == "int8":
        _, frames, channels, height, width = video.shape
        clips = np.stack([clip for _, clip in synthetic_inputs(frames, channels, height, width)])
        quantize(path, path, {"video": clips}, form="onnxruntime")


def find_truth(side: Side, pair: Pair, video: np.ndarray, folder: Path) -> np.ndarray:
    """Logits of the first clips in float64, computed unless another pair has done so."""
    source = "plain" if side.source == "ours" else side.source
    path = folder / f"{'-'.join((source, side.mechanism, side.semantics))}.npy"
    if not path.exists():
        module = make_module(side, pair).double()
        clips = torch.from_numpy(video[:TRUTH_CLIPS]).double()
        np.save(path, torch.cat([module(clip[None]) for clip in clips]).numpy())
    return np.load(path)


# --- timing


@dataclass(frozen=True)
class Figures:
    """What came of a pair."""

    status: str = "timed"  # or "failed", "missing"
    reason: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    ours_p50_ms: float | None = None
    peer_p50_ms: float | None = None
    measured_rounds: int = 0
    ours_rel_l2: float | None = None
    peer_rel_l2: float | None = None
    others_busy_cores: float | None = None


def measure(pair: Pair, folder: Path) -> Figures:
    """Make both sides, judge what they compute, and time them; for a process of its own."""
    torch.set_num_threads(pair.threads)
    shape = (pair.batch, pair.frames, 3, pair.resolution, pair.resolution)
    video = np.random.default_rng(0).standard_normal(shape, np.float32)
    runs, errors = [], []
    for name in (pair.ours, pair.peer):
        try:
            with torch.no_grad():
                side = resolve(name, pair)
                runs.append(RUNTIMES[side.runtime](side, pair, video, folder))
                for _ in range(WARMUP_RUNS):
                    runs[-1]()
                errors.append(relative_error(runs[-1](), find_truth(side, pair, video, folder)))
        except UnavailableError as error:
            return Figures("missing", f"{name}: {error}")
        except Exception as error:  # whatever a side raises is what there is to say of it
            said = " ".join(str(error).split())[:300]
            return Figures("failed", f"{name}: {type(error).__name__}: {said}")
    with torch.no_grad(), Contention() as others:
        ours, peer = time_pair(runs, pair.rounds, pair.seconds)
    ratio, low, high = median_interval(peer / ours)
    return Figures(
        ratio=ratio,
        low=low,
        high=high,
        ours_p50_ms=float(np.median(ours) * 1e3),
        peer_p50_ms=float(np.median(peer) * 1e3),
        measured_rounds=len(ours),
        ours_rel_l2=errors[0],
        peer_rel_l2=errors[1],
        others_busy_cores=others.cores,
    )


def relative_error(logits: np.ndarray, truth: np.ndarray) -> float:
    """Relative L2 of the clips whose truth is known."""
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    off = np.linalg.norm(logits[: len(truth)].astype(np.float64) - truth)
    return float(off / np.linalg.norm(truth))


def time_pair(runs: Sequence[Run], rounds: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of both sides, once each a round, the first to go changing from round to round."""
    taken: list[list[float]] = [[], []]
    started = time.perf_counter()
    for done in range(max(rounds, MIN_ROUNDS)):
        if done >= MIN_ROUNDS and time.perf_counter() - started > seconds:
            break
        for index in (0, 1) if done % 2 else (1, 0):
            time.sleep(SETTLE_SECONDS)
            before = time.perf_counter()
            runs[index]()
            taken[index].append(time.perf_counter() - before)
    ours, peer = map(np.asarray, taken)
    return ours, peer


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval (pure)."""
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


# --- the whole run


def measure_all(pairs: Sequence[Pair], limit: float) -> Iterator[dict[str, Any]]:
    """One row after the other; pairs of one case that stand together share their graphs."""
    for _, case in itertools.groupby(pairs, lambda pair: replace(pair, ours="", peer="")):
        with tempfile.TemporaryDirectory() as folder:
            for pair in case:
                yield asdict(pair) | asdict(measure_apart(pair, Path(folder), limit))


def measure_apart(pair: Pair, folder: Path, limit: float) -> Figures:
    """Measure in a process of its own: what one runtime sets or leaks, the next does not see."""
    command = [sys.executable, __file__, "--child", json.dumps(asdict(pair)), str(folder)]
    surroundings = os.environ | {"OMP_NUM_THREADS": str(pair.threads)}
    try:
        done = subprocess.run(
            command, env=surroundings, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return Figures("failed", f"took longer than {limit:g} s")
    if done.returncode:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else "an error"
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return Figures("failed", f"the process ended with {ended}: {last[:300]}")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))  # runtimes may print before


def find_closest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each case the row of our better graph with the best of its peers (pure).

    Peers of another mechanism or of other semantics compute something else, and do not count.
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
    """What the figures were measured on and with."""
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


def write(out: Path, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Everything to `out` as JSON, and the rows beside it as CSV."""
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {**facts, "notes": NOTES, "closest": find_closest(rows), "rows": rows}
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    context = {name: facts["environment"][name] for name in ("date", "cpu", "commit")}
    with out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *context], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **context} for row in rows)


def line(row: Mapping[str, Any]) -> str:
    """One row of the printed table."""
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
    *("published/eager", "published/onnxruntime", "published/openvino"),
    *("einsum/eager", "einsum/compile", "plain/eager", "plain/onnxruntime", "plain/openvino"),
    *("plain/compile", "plain/frozen", "plain/unmatched", "plain/frozen-unmatched"),
)


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
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32", help="of ours")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=100, help="at most, of one pair")
    parser.add_argument("--seconds", type=float, default=20.0, help="after which no round starts")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds of one process")
    for name in ("--frames", "--dim", "--depth"):
        parser.add_argument(name, type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "results" / "peers.json")
    parser.add_argument("--add", action="store_true", help="to the rows that are in --out already")
    return parser.parse_args(arguments)


def list_pairs(asked: argparse.Namespace) -> list[Pair]:
    """The pairs that a command line asks for, those of one case together."""
    fast = asked.model == "fast"
    mechanisms = asked.mechanisms or (MECHANISM_NAMES if fast else ["regular"])
    resolutions = asked.resolutions or ([224, 512] if fast else [224])
    same: dict[str, Any] = {
        name: getattr(asked, name) or default
        for name, default in zip(("frames", "dim", "depth"), SIZES[asked.model], strict=True)
    }
    for name in ("model", "precision", "threads", "rounds", "seconds"):
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
    """Measure, print and write; 0 if anything was timed."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["--child"]:
        print(json.dumps(asdict(measure(Pair(**json.loads(given[1])), Path(given[2])))))
        return 0
    asked = parse(given)
    facts = {"environment": describe(), "commands": [[Path(__file__).name, *given]]}
    rows: list[dict[str, Any]] = []
    if asked.add and asked.out.is_file():
        before = json.loads(asked.out.read_text(encoding="utf-8"))
        rows, facts["commands"] = before["rows"], before["commands"] + facts["commands"]
    for row in measure_all(list_pairs(asked), asked.limit):
        rows.append(row)
        write(asked.out, facts, rows)  # after each: the run may be cut short
        print(line(row), flush=True)
    print("\nour better graph against the best of its peers, of the same semantics:")
    for row in find_closest(rows):
        print(line(row))
    return 0 if any(row["status"] == "timed" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
