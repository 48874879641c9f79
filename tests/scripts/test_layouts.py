"""Test scripts/peers/layouts.py, and that choose.py follows the table that it wrote."""

import json
from itertools import groupby
from pathlib import Path

import pytest

from exporter.rewrite import REWRITES
from exporter.rewrite.choose import rewrites_to_skip
from exporter.runners.openvino import precisions
from exporter.spec import ExportSpec
from model import FastTimeSformer

RESULTS = Path(__file__).parents[2] / "scripts" / "results" / "layouts.json"
FASTER = 1.1  # a set that is faster beyond doubt, by more than the noise of a shared machine
pytestmark = pytest.mark.usefixtures("threads_kept")


@pytest.fixture(scope="module")
def layouts(script):
    return script("layouts")


@pytest.fixture(scope="module")
def result_rows(script):
    return script("result_rows")


def chosen_rules(runtime, precision, mechanism):
    model = FastTimeSformer(2, 3, 32, 32, num_classes=2, depth=1, attn_mechanism=mechanism)
    target = "onnxruntime" if runtime == "onnxruntime" else "openvino"
    skip = rewrites_to_skip(ExportSpec(precision=precision), model.eval(), target)
    return set(REWRITES) - set(skip) - {"fold_pixels"}


def cells():
    rows = [row for row in json.loads(RESULTS.read_text()) if row["status"] == "timed"]

    def cell(row):
        names = ("cpu", "flags", "mechanism", "res", "batch", "precision", "depth", "threads")
        return json.dumps([row[name] for name in (*names, "runtime")])

    return [list(found) for _, found in groupby(sorted(rows, key=cell), key=cell)]


@pytest.mark.parametrize("rows", cells(), ids=lambda rows: f"{rows[0]['runtime']}-{rows[0]['res']}")
def test_no_measured_set_is_faster_than_the_one_that_is_chosen(rows):
    first = rows[0]
    rules = chosen_rules(first["runtime"], first["precision"], first["mechanism"])
    same = [row for row in rows if set(row["rules"]) - {"fold_pixels"} == rules]
    assert same, "the set that choose.py takes was not measured: run the script again"
    beyond = [row["set"] for row in rows if row["low"] > FASTER * same[0]["high"]]
    assert beyond == []


def test_what_a_cpu_lacks_is_a_row_with_its_reason():
    rows = json.loads(RESULTS.read_text())
    lacking = [row for row in rows if row["status"] == "not run"]
    assert all(row["reason"] and "p50_ms" not in row for row in lacking)


def test_rows_of_the_same_cell_set_and_cpu_are_replaced(layouts, result_rows):
    cell = {"mechanism": "regular", "res": 64, "batch": 1, "precision": "fp32", "depth": 1}
    row = {**cell, "threads": 1, "cpu": "x", "flags": ["avx2"], "runtime": "openvino", "set": "few"}
    other = row | {"flags": ["amx_bf16"]}
    kept, new = [row | {"p50_ms": 1}, other], [row | {"p50_ms": 2}]
    found = result_rows.merge(kept, new, layouts.key)
    assert [(each["flags"], each.get("p50_ms")) for each in found] == [
        (["amx_bf16"], None),
        (["avx2"], 2),
    ]


def test_rows_are_added_to_a_file_that_may_be_absent(result_rows, tmp_path):
    path = tmp_path / "rows.json"
    for row in ({"n": 2, "ms": 1}, {"n": 1, "ms": 1}, {"n": 2, "ms": 3}):
        result_rows.add(path, [row], lambda row: (row["n"],))
    assert result_rows.read(path) == [{"n": 1, "ms": 1}, {"n": 2, "ms": 3}]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]


def test_sets_are_the_layout_of_onnx_runtime_and_parts_of_it(layouts):
    cell = layouts.Cell("regular", 32, 1, "fp32", 1, 1)
    assert cell.rules("none") == []
    assert cell.rules("few") == ["class_token", "fold_fc"]
    assert set(cell.rules("- fold_norm")) == set(cell.rules("cpu")) - {"fold_norm"}
    assert set(cell.rules("+ heads_first")) == {"class_token", "fold_fc", "heads_first"}
    assert set(layouts.names_of_sets(["all"])) > {"none", "few", "cpu", "uncut", "- fold_norm"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cell_times_every_set_in_every_runtime(layouts, precision):
    rows = layouts.measure(layouts.Cell("regular", 32, 1, precision, 1, 1), ["none", "few"], 0)
    runs = {"onnxruntime": precision == "fp32", "openvino": precision in precisions()}
    assert {(r["runtime"], r["set"], r["status"]) for r in rows} == {
        (runtime, name, "timed" if works else "not run")
        for runtime, works in runs.items()
        for name in ("none", "few")
    }
    for row in rows:
        if row["status"] == "timed":
            assert row["low"] <= row["ratio"] <= row["high"]
