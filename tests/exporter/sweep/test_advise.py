"""The Pareto front and the pick have no dominated or unproven point; the pick meets the limits."""

import json
import shutil

import numpy as np
import pytest

from exporter import cli
from exporter.errors import ManifestError, NoExportError, UsageError
from exporter.sweep.advise import Limits, advise, read_rows
from exporter.sweep.results import (
    criterion_of,
    figures,
    find_front,
    read_cells,
    read_points,
)

TIMED = {"batch": 1, "p99_ms": 99.0}
CPU = {"runtime": "onnxruntime", "device": "cpu", "precision": "fp32"}
EAGER = {**CPU, "runtime": "eager"}


def row(name, p50, accuracy=None, error=1e-6, verdict="pass", memory=100.0, **runtimes):
    """Return the row of a cell timed in ONNX Runtime and in `runtimes`.

    `runtimes` maps a name to verdict, latency and accuracy.
    """
    parity = [{**CPU, "verdict": verdict, "rel_l2": error}]
    latency = [
        {**EAGER, **TIMED, "p50_ms": 0.001, "peak_memory_mb": 1.0},
        {**CPU, **TIMED, "p50_ms": p50, "peak_memory_mb": memory},
    ]
    known = [] if accuracy is None else [{**EAGER, "accuracy": 1.0}, {**CPU, "accuracy": accuracy}]
    for runtime, (its_verdict, its_p50, its_accuracy) in runtimes.items():
        who = {**CPU, "runtime": runtime}
        parity.append({**who, "verdict": its_verdict, "rel_l2": error})
        latency.append({**who, **TIMED, "p50_ms": its_p50, "peak_memory_mb": memory})
        known.append({**who, "accuracy": its_accuracy})
    return {
        "cell": {"attn": name},
        "key": name,
        "status": "done",
        "verdict": verdict,
        "directory": f"cells/{name}",
        "report": {
            "parity": parity,
            "latency": latency,
            "accuracy": known,
            "graph": {"file_bytes": 1000, "bytes": 9},  # `bytes` is the memory traffic of a clip
            "engine": {"bytes": 2000},
        },
    }


FAILED = {"cell": {"attn": "z"}, "status": "failed", "verdict": None, "report": None}


def test_a_cell_is_as_good_as_its_worst_output():
    made = row("a", 3.0, error=1e-7)
    made["report"]["parity"].append({**CPU, "verdict": "fail", "rel_l2": 0.5})
    (cell,) = read_cells([made])
    (timed,) = (one for one in cell.timed if one.runtime == "onnxruntime")
    assert (timed.verdict, timed.error) == ("fail", 0.5)


def name(point):
    return point.cell.values["attn"] if point else None


def proven_points(rows, criterion):
    return [point for point in read_points(read_cells(rows), criterion) if point.proven]


def dominates(one, other, criterion):
    ours, theirs = figures(one, criterion), figures(other, criterion)
    return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]


def random_rows(seed):
    """Return rows with few different values, so that ties are frequent."""
    rng = np.random.default_rng(seed)
    return [
        row(
            f"c{i}",
            float(rng.integers(1, 6)),
            accuracy=float(rng.integers(1, 6)) / 5 if seed % 3 else None,
            error=float(rng.integers(1, 6)) * 1e-7,
            verdict=str(rng.choice(["pass", "pass", "fail", "ill-conditioned"])),
            memory=float(rng.integers(1, 4)) * 100,
        )
        for i in range(rng.integers(1, 12))
    ]


@pytest.mark.parametrize("seed", range(200))
def test_front_and_pick_of_random_sweeps_are_proven_and_not_dominated(seed):
    rows = random_rows(seed)
    rng = np.random.default_rng(seed + 1000)
    limits = Limits(
        max_latency_ms=float(rng.integers(1, 7)) if rng.random() < 0.5 else None,
        min_accuracy=float(rng.random()) if rng.random() < 0.5 and seed % 3 else None,
        max_memory=float(rng.integers(1, 4)) * 1e8 if rng.random() < 0.3 else None,
    )
    found = advise(rows, limits)
    proven = proven_points(rows, found.criterion)
    fitting = [point for point in proven if not limits.excesses(point.timed)]
    assert (found.pick is None) == (not fitting)
    if found.pick:
        assert found.pick in fitting
        assert not any(dominates(other, found.pick, found.criterion) for other in fitting)
    else:
        assert (found.closest is None) == (not proven)
    for point in proven:
        on_front = point in found.front
        beaten = any(dominates(other, point, found.criterion) for other in proven)
        assert on_front != beaten
    times = [point.timed.p50_ms for point in found.front]
    assert times == sorted(times)
    assert all(point.proven for point in found.front)


def test_a_dominated_cell_is_not_on_the_front():
    points = proven_points((row("a", 1, 0.5), row("b", 2, 0.9), row("c", 3, 0.9)), "accuracy")
    assert [name(point) for point in find_front(points, "accuracy")] == ["a", "b"]
    assert not dominates(points[0], points[0], "accuracy")


def test_equal_cells_are_all_on_the_front_and_the_smaller_is_picked():
    rows = (row("a", 10, 0.9), row("b", 10, 0.9), row("c", 5, 0.8), row("d", 10, 0.89))
    rows[0]["report"]["graph"]["file_bytes"] = 3000
    found = advise(rows, Limits())
    assert [name(point) for point in found.front] == ["c", "a", "b"]
    assert name(found.pick) == "b"


class TestThePick:
    ROWS = (row("quick", 10, 0.90), row("middle", 30, 0.96), row("slow", 80, 0.99))

    @pytest.mark.parametrize(
        ("limits", "picked"),
        [
            (Limits(), "slow"),
            (Limits(max_latency_ms=50), "middle"),
            (Limits(min_accuracy=0.95), "middle"),
            (Limits(max_latency_ms=100, min_accuracy=0.9), "quick"),
            (Limits(max_latency_ms=30, min_accuracy=0.96), "middle"),  # limits are inclusive
        ],
    )
    def test_is_the_best_or_with_a_minimum_accuracy_the_fastest(self, limits, picked):
        assert name(advise(self.ROWS, limits).pick) == picked

    def test_has_a_reason_of_one_sentence(self):
        reason = advise(self.ROWS, Limits(50, 0.9)).reason
        assert reason == (
            "quick in onnxruntime is the fastest that is accurate enough of the 2 proven choices "
            "within the limits: 10 ms, accuracy 90.0%."
        )

    def test_keeps_the_limit_of_memory(self):
        rows = (row("big", 10, 0.99, memory=900.0), row("small", 20, 0.9, memory=90.0))
        assert name(advise(rows, Limits(max_memory=100e6)).pick) == "small"

    @pytest.mark.parametrize("verdict", ["fail", "ill-conditioned", "not-run"])
    def test_is_never_an_unproven_cell(self, verdict):
        rows = (row("best", 1, 1.0, verdict=verdict), row("proven", 50, 0.5), FAILED)
        assert name(advise(rows, Limits()).pick) == "proven"
        found = advise(rows[::2], Limits())
        assert (found.pick, found.closest, found.cells) == (None, None, 2)
        assert "No cell is proven" in found.reason

    def test_is_never_a_runtime_that_failed_although_another_passed(self):
        rows = (row("a", 50, 0.9, tensorrt=("fail", 1.0, 0.9)),)
        assert advise(rows, Limits()).pick.timed.runtime == "onnxruntime"

    def test_is_never_eager(self):
        (cell,) = read_cells([row("a", 5, 0.9)])
        assert [timed.runtime for timed in cell.made] == ["onnxruntime"]


def test_with_a_runtime_only_its_timings_count():
    rows = (row("a", 50, 0.9, tensorrt=("pass", 1.0, 0.8)), row("b", 40, 0.9))
    assert advise(rows, Limits()).pick.cell.values == {"attn": "b"}
    found = advise(rows, Limits(), "tensorrt").pick
    assert (name(found), found.timed.runtime, found.timed.bytes) == ("a", "tensorrt", 2000)
    assert advise(rows, Limits(), "onnxruntime").pick.timed.bytes == 1000
    with pytest.raises(UsageError, match="got openvino, expected one of onnxruntime, tensorrt"):
        advise(rows, Limits(), "openvino")


class TestNothingFits:
    @pytest.mark.parametrize(
        ("limits", "closest", "miss"),
        [
            (Limits(max_latency_ms=8), "quick", "the latency by 2 ms (10 for 8)"),
            (Limits(min_accuracy=1.0), "slow", "the accuracy by 1 points (99.0% for 100.0%)"),
            (Limits(25, 0.95), "quick", "the accuracy by 5 points (90.0% for 95.0%)"),
            (Limits(max_memory=50e6), "quick", "the memory by 54.9 MB (105 for 50)"),
        ],
    )
    def test_the_closest_is_named_with_the_limits_it_misses(self, limits, closest, miss):
        found = advise(TestThePick.ROWS, limits)
        assert found.pick is None
        assert name(found.closest) == closest
        assert miss in found.reason

    def test_the_closest_to_a_limit_of_0_has_the_smallest_excess(self):
        rows = [row("worse", 10, accuracy=-0.5), row("closer", 20, accuracy=-0.2)]  # R2
        found = advise(rows, Limits(min_accuracy=0))
        assert name(found.closest) == "closer"
        assert "the accuracy by 20 points (-20.0% for 0.0%)" in found.reason


class TestWithoutAccuracy:
    ROWS = (row("a", 10, error=1e-3), row("b", 20, error=1e-6), row("c", 30, error=1e-5))

    def test_cells_are_compared_by_their_error(self):
        found = advise(self.ROWS, Limits())
        assert found.criterion == criterion_of([]) == "error"
        assert [name(choice) for choice in found.front] == ["a", "b"]
        assert name(found.pick) == "b"

    def test_a_minimum_accuracy_is_refused(self):
        with pytest.raises(UsageError, match="no accuracy was measured; sweep with --eval"):
            advise(self.ROWS, Limits(min_accuracy=0.9))

    def test_cells_without_accuracy_are_ignored_if_another_cell_has_one(self):
        found = advise((*self.ROWS, row("d", 90, 0.7)), Limits())
        assert [name(choice) for choice in found.front] == ["d"]


class TestReading:
    def test_a_sweep_gives_its_rows(self, tmp_path):
        (tmp_path / "sweep.json").write_text(json.dumps({"rows": [row("a", 1, 0.9), FAILED]}))
        assert [r["status"] for r in read_rows(tmp_path)] == ["done", "failed"]

    def test_a_single_export_gives_one_row(self, exported):
        (only,) = read_rows(exported().directory)
        assert advise([only], Limits()).pick.timed.runtime == "onnxruntime"

    def test_an_export_whose_graph_was_changed_is_not_advised(self, exported, tmp_path):
        shutil.copytree(exported().directory, tmp_path / "x")
        with (tmp_path / "x" / "model.onnx").open("ab") as file:
            file.write(b"x")
        with pytest.raises(ManifestError, match=r"model\.onnx was changed since"):
            read_rows(tmp_path / "x")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            '{"rows": 3}',
            '{"rows": [{"report": {}}]}',
            '{"rows": [{"cell": {}, "status": "done", "verdict": "pass", "report": {}}]}',
            pytest.param("[" * 100_000, id="nested deeply"),
        ],
    )
    def test_a_damaged_file_is_an_error(self, tmp_path, text):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(NoExportError, match="damaged"):
            read_rows(tmp_path)

    def test_a_file_of_a_newer_tsformer_is_refused_by_that_reason(self, tmp_path, exported):
        (tmp_path / "sweep.json").write_text('{"sweep_version": 2, "rows": []}')
        with pytest.raises(NoExportError, match="got version 2 of its format, expected at most 1"):
            read_rows(tmp_path)
        (tmp_path / "sweep.json").unlink()
        manifest = json.loads((exported().directory / "manifest.json").read_text())
        newer = json.dumps(manifest | {"manifest_version": 2})
        (tmp_path / "manifest.json").write_text(newer)
        with pytest.raises(NoExportError, match="got version 2 of its format, expected at most 1"):
            read_rows(tmp_path)

    def test_a_directory_that_is_neither_sweep_nor_export_is_an_error(self, tmp_path):
        with pytest.raises(NoExportError, match="neither a sweep nor an export"):
            read_rows(tmp_path)


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch, capfd):
        (tmp_path / "grid").mkdir()
        rows = [*TestThePick.ROWS, FAILED]
        (tmp_path / "grid" / "sweep.json").write_text(json.dumps({"rows": rows}))
        monkeypatch.chdir(tmp_path)

        def call(*arguments):
            code = cli.main(["advise", "grid", *arguments])
            return code, *capfd.readouterr()

        return call

    @pytest.mark.parametrize("accuracy", ["0.95", "95%", ".95", "95 %"])
    @pytest.mark.parametrize("latency", ["50ms", "0.05s", "50000 us", "50 MS"])
    def test_reads_units_and_prints_the_pick_with_its_reason(self, run, latency, accuracy):
        code, out, err = run("--max-latency", latency, "--min-accuracy", accuracy)
        assert (code, err) == (0, "")
        assert "→ middle " in out
        assert "middle in onnxruntime is the fastest" in out
        assert out.splitlines()[-1] == "grid/cells/middle"  # from the current directory
        assert max(map(len, out.splitlines())) <= 80

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--max-latency", "50"),
            ("--max-latency", "ms"),
            ("--max-latency", "-1ms"),
            ("--max-latency", "0ms"),
            ("--max-latency", "5h"),
            ("--max-latency", "nan"),
            ("--max-latency", "1e3ms"),
            ("--min-accuracy", "95"),
            ("--min-accuracy", "1.5"),
            ("--min-accuracy", "x"),
            ("--min-accuracy", "101%"),
            ("--min-accuracy", "-5%"),
            ("--min-accuracy", "nan"),
            ("--max-memory", "500"),
            ("--max-memory", "0MB"),
            ("--max-memory", "5 XB"),
        ],
    )
    def test_a_value_that_is_not_a_quantity_is_refused(self, run, option, value):
        code, out, err = run(f"{option}={value}")
        assert (code, out) == (2, "")
        assert "expected" in err

    def test_without_a_fitting_cell_exits_with_5_and_names_the_closest(self, run):
        code, out, err = run("--max-latency", "1ms", "--max-memory", "1.5GiB")
        assert code == 5
        assert "quick" in out  # the front is shown in this case too
        assert err == (
            "tsformer: advise: Nothing meets the limits; closest is quick in onnxruntime, which "
            "misses the latency by 9 ms (10 for 1).\n"
        )

    def test_names_the_runtime_if_there_are_several(self, tmp_path, capfd):
        rows = [row("a", 50, 0.9, tensorrt=("pass", 1.0, 0.8))]
        (tmp_path / "sweep.json").write_text(json.dumps({"rows": rows}))
        assert cli.main(["advise", str(tmp_path)]) == 0
        out = capfd.readouterr().out
        assert "→ a in onnxruntime" in out
        assert "  a in tensorrt" in out

    def test_json_holds_the_pick_and_the_counts(self, run):
        code, out, _ = run("--json", "--max-latency", "50ms")
        found = json.loads(out)
        assert code == 0
        assert found["pick"]["cell"] == {"attn": "middle"}
        assert (found["criterion"], found["proven"], found["cells"]) == ("accuracy", 3, 4)
        code, out, _ = run("--json", "--max-latency", "1ms")
        assert (code, json.loads(out)["pick"]) == (5, None)
