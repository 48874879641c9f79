"""Test scripts/peers/bench_peers.py: a whole run, each side of the table, the statistics."""

import csv
import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

TINY = ["--frames", "2", "--dim", "64", "--depth", "1", "--threads", "1"]
TINY += ["--rounds", "6", "--seconds", "1"]
pytestmark = pytest.mark.usefixtures("threads_kept")


@pytest.fixture(scope="module")
def bench(script):
    return script("bench_peers")


@pytest.fixture(scope="module")
def timing(bench):
    return sys.modules["timing"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Make one folder for all pairs of one case, as in a real run."""
    return tmp_path_factory.mktemp("graphs")


def pair_of(bench, ours="plain/eager", peer="plain/eager", **changes):
    flags = [*TINY, "--mechanisms", "performer", "--resolutions", "32"]
    pair = bench.list_pairs(bench.parse([*flags, "--ours", "plain/eager", "--peers", "x"]))[0]
    return replace(pair, ours=ours, peer=peer, **changes)


def row_of(bench, ratio: float | None = 1.0, status="timed", **changes):
    return asdict(pair_of(bench)) | asdict(bench.Figures(status, "", ratio)) | changes


@pytest.mark.parametrize("option", ["--processes", "--rounds", "--threads"])
def test_a_count_of_zero_is_refused(bench, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.parse([option, "0"])
    assert f"argument {option}: at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_writes_json_and_csv_and_adds_rows(bench, timing, tmp_path, capsys):
    out = tmp_path / "new" / "peers.json"
    flags = [*TINY, "--mechanisms", "fastformer", "--resolutions", "32", "--batches", "2"]
    flags += ["--ours", "ours/onnxruntime", "--peers", "published/eager", "--out", str(out)]
    assert bench.main(flags) == 0

    content = json.loads(out.read_text())
    (row,) = content["rows"]
    assert row["status"] == "timed", row["reason"]
    assert 0 < row["low"] <= row["ratio"] <= row["high"]
    assert row["ours_p50_ms"] > 0
    assert row["peer_p50_ms"] > 0
    assert timing.MIN_ROUNDS <= row["measured_rounds"] <= 6
    assert row["ours_rel_l2"] < 1e-5
    assert row["peer_rel_l2"] < 1e-5
    assert content["closest"] == []  # the peer has other semantics, so it does not count
    assert {"date", "cpu", "cores", "commit", "packages"} <= set(content["environment"])
    (command,) = content["commands"]  # it contains no folder of this machine
    assert command == ["bench_peers.py", *flags[:-2]]
    (line,) = csv.DictReader(out.with_suffix(".csv").read_text().splitlines())
    assert float(line["ratio"]) == row["ratio"]
    assert line["cpu"] == content["environment"]["cpu"]
    assert "fastformer   32 px  batch 2" in capsys.readouterr().out

    assert bench.main([*flags, "--add"]) == 0
    added = json.loads(out.read_text())
    assert added["rows"][0] == row
    assert row["date"] < added["rows"][1]["date"]  # each row has its own date
    assert len(added["rows"]) == len(added["commands"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "peer"),
    [
        ("ours/onnxruntime", "einsum/eager"),
        ("plain/onnxruntime", "ours/onnxruntime@regular"),
        ("published/onnxruntime", "plain/eager"),
        ("uncut/onnxruntime", "plain/eager"),
    ],
)
def test_every_side_is_close_to_its_own_truth(bench, graphs, ours, peer):
    figures = bench.measure(pair_of(bench, ours, peer), graphs)
    assert figures.status == "timed", figures.reason
    assert max(figures.ours_rel_l2, figures.peer_rel_l2) < 1e-5


@pytest.mark.slow
def test_openvino_is_timed(bench, graphs):
    pytest.importorskip("openvino")
    figures = bench.measure(pair_of(bench, "ours/openvino", "plain/openvino"), graphs)
    assert figures.status == "timed", figures.reason
    assert max(figures.ours_rel_l2, figures.peer_rel_l2) < 1e-5


@pytest.mark.slow
def test_without_openvino_the_row_is_missing_with_a_reason(bench, graphs, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    figures = bench.measure(pair_of(bench, peer="ours/openvino"), graphs)
    said = (figures.status, figures.reason)
    assert said == ("missing", "ours/openvino: openvino is not installed")


@pytest.mark.parametrize(
    ("runtime", "options"),
    [
        ("compile", None),
        ("frozen", {"freezing": True}),
        ("frozen-unmatched", {"freezing": True, "pattern_matcher": False}),
    ],
)
def test_compiled_sides_pass_their_options(bench, graphs, monkeypatch, runtime, options):
    asked = []

    def compile_nothing(module, **settings):
        asked.append(settings)
        return module

    monkeypatch.setattr(torch, "compile", compile_nothing)
    figures = bench.measure(pair_of(bench, peer=f"plain/{runtime}"), graphs)
    assert figures.status == "timed", figures.reason
    assert asked == [{"dynamic": False, "options": options}]


@pytest.mark.slow
def test_int8_applies_to_our_side_alone(bench, tmp_path):
    pair = pair_of(bench, "ours/onnxruntime", "plain/onnxruntime", precision="int8")
    figures = bench.measure(pair, tmp_path)
    assert figures.status == "timed", figures.reason
    assert 1e-5 < figures.ours_rel_l2 < 0.3
    assert figures.peer_rel_l2 < 1e-5


def test_vit_is_timed_against_transformers(bench, tmp_path):
    pair = pair_of(bench, peer="published/eager", model="vit", mechanism="regular")
    figures = bench.measure(pair, tmp_path)
    assert figures.status == "timed", figures.reason
    assert figures.peer_rel_l2 < 1e-4
    assert bench.measure(replace(pair, peer="einsum/eager"), tmp_path).status == "missing"


@pytest.mark.parametrize(
    "peer", ["nothing/eager", "plain/nothing", "ours/eager", "uncut/eager", "plain/eager@x"]
)
def test_an_unknown_side_is_a_row_with_the_reason(bench, tmp_path, peer):
    figures = bench.measure(pair_of(bench, peer=peer), tmp_path)
    assert figures.status == "missing"
    assert figures.reason.startswith(f"{peer}: there is no")


def test_a_side_that_fails_or_gives_nan_is_a_row_with_the_reason(
    bench, timing, tmp_path, monkeypatch
):
    def explode(*_):
        raise RuntimeError("no\n  memory")

    added = {"bad": explode, "nan": lambda *_: lambda: np.full((1, 2), np.nan)}
    for name, make in added.items():
        monkeypatch.setitem(timing.RUNTIMES, name, make)
    said = [bench.measure(pair_of(bench, peer=f"plain/{name}"), tmp_path) for name in added]
    assert {figures.status for figures in said} == {"failed"}
    assert said[0].reason == "plain/bad: RuntimeError: no memory"
    assert said[1].reason == "plain/nan: ValueError: the logits are not finite"


def test_a_process_that_is_killed_or_hangs_is_a_row_with_the_reason(bench, tmp_path, monkeypatch):
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    assert "signal 9" in bench.measure_apart(pair_of(bench), tmp_path, 10.0).reason

    def hang(*_, **__):
        raise subprocess.TimeoutExpired("python", 10.0)

    monkeypatch.setattr(subprocess, "run", hang)
    figures = bench.measure_apart(pair_of(bench), tmp_path, 10.0)
    assert (figures.status, figures.reason) == ("failed", "took longer than 10 s")


def test_the_side_that_runs_first_alternates(timing):
    order = []
    runs = [lambda name=name: order.append(name) for name in "ab"]
    ours, peer = timing.time_pair(runs, 0, 0.0)
    assert "".join(order) == "bbaaaabbbbaaaabbbbaa"
    assert len(ours) == len(peer) == timing.MIN_ROUNDS


def test_processes_of_a_pair_are_pooled(bench, tmp_path, monkeypatch):
    made = [
        bench.Rounds("timed", "", [1.0] * 5, [2.0] * 5, 1e-7, 2e-7, 0.5),
        bench.Rounds("timed", "", [1.0] * 7, [3.0] * 7, 1e-7, 2e-7, 0.1),
    ]
    monkeypatch.setattr(bench, "measure_apart", lambda *_: made.pop(0))
    figures = bench.measure_pair(pair_of(bench, processes=2), tmp_path, 10.0)
    assert (figures.ratio, figures.low, figures.high) == (3.0, 2.0, 3.0)
    assert (figures.ours_p50_ms, figures.peer_p50_ms) == (1000.0, 3000.0)
    assert (figures.measured_rounds, figures.others_busy_cores) == (12, 0.3)
    assert made == []


def test_a_failed_process_fails_its_pair(bench, tmp_path, monkeypatch):
    made = [bench.Rounds("timed", "", [1.0], [2.0]), bench.Rounds("failed", "signal 9")]
    monkeypatch.setattr(bench, "measure_apart", lambda *_: made.pop(0))
    figures = bench.measure_pair(pair_of(bench, processes=3), tmp_path, 10.0)
    assert figures == bench.Figures("failed", "signal 9")


@pytest.mark.slow
def test_the_interval_includes_differences_between_processes(timing):
    alike = timing.median_interval(np.full(50, 2.0), np.full(50, 2.0))
    apart = timing.median_interval(np.full(50, 2.0), np.full(50, 2.5))
    assert alike == (2.0, 2.0, 2.0)
    assert apart[1:] == (2.0, 2.5)


def test_the_interval_contains_the_median_and_narrows_with_samples(timing):
    values = np.random.default_rng(1).normal(2.0, 0.1, 400)
    few, many = timing.median_interval(values[:20]), timing.median_interval(values)
    for median, low, high in (few, many):
        assert low < median < high
    assert few[2] - few[1] > many[2] - many[1]
    assert timing.median_interval(np.full(5, 3.0)) == (3.0, 3.0, 3.0)


def test_the_closest_row_is_our_best_against_its_best_peer(bench):
    rows = [
        row_of(bench, 2.0, ours="ours/onnxruntime", peer="plain/eager"),
        row_of(bench, 1.2, ours="ours/onnxruntime", peer="plain/openvino"),
        row_of(bench, 1.5, ours="ours/openvino", peer="plain/eager"),
        row_of(bench, 1.1, ours="ours/openvino", peer="plain/openvino"),
        row_of(bench, 0.1, ours="ours/onnxruntime", peer="published/eager"),  # other semantics
        row_of(bench, 0.1, ours="ours/onnxruntime", peer="ours/onnxruntime@regular"),
        row_of(bench, None, "failed", ours="ours/onnxruntime", peer="plain/compile"),
    ]
    assert bench.find_closest(rows) == [rows[1]]
    upstream = [row | {"semantics": "upstream"} for row in rows]
    assert bench.find_closest(upstream) == [upstream[3]]


def test_pairs_of_one_case_are_adjacent_and_no_side_meets_itself(bench):
    flags = [*TINY, "--ours", "ours/onnxruntime", "--peers", "plain/eager"]
    flags += ["ours/onnxruntime@regular", "--resolutions", "32", "64", "--batches", "1", "4"]
    pairs = bench.list_pairs(bench.parse(flags))
    assert len(pairs) == 2 * 2 * (3 * 2 - 1)
    cases = [(p.resolution, p.batch, p.semantics, p.mechanism) for p in pairs]
    assert cases == sorted(cases, key=cases.index)
    (vit,) = {p.mechanism for p in bench.list_pairs(bench.parse(["--model", "vit"]))}
    assert vit == "regular"
