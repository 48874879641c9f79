"""Test the records of machines: bound to the files that were run, and never trusted blindly."""

import json
from dataclasses import replace

import pytest

from exporter.errors import OutputError, UsageError
from exporter.files.machines import machine_name, present_rows, read_machines, record
from exporter.results import InputParity, Latency, Parity

FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.engine"}
HERE = {"cpu": "a cpu", "gpu": "a gpu", "date": "2026-11-29"}
ONNX = Parity("onnxruntime", "cpu", "fp32", "pass", rel_l2=1e-7, tolerance=1e-6, inputs=8)
ENGINE = Parity("tensorrt", "cuda:0 a gpu", "fp32", "pass", rel_l2=float("inf"), inputs=8)
TIMES = dict.fromkeys(("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "std_ms"), 1.0)
FAST = Latency(
    "onnxruntime",
    "cpu",
    "fp32",
    1,
    **TIMES,
    clips_per_s=1000.0,
    runs=10,
    peak_memory_mb=100.0,
    warmup_runs=3,
    threads=1,
    transfers_included=True,
    samples_ms=(1.0, 1.0),
)


def manifest(**changed):
    hashes = {"model.onnx": "a" * 64, "model.engine": "b" * 64} | changed
    return {"files": {name: {"sha256": digest} for name, digest in hashes.items()}}


@pytest.fixture
def recorded(tmp_path):
    record(tmp_path, manifest(), "orin", HERE, FILES, (ONNX, ENGINE))
    return tmp_path


def verdicts(machines, file):
    return [(name, row.verdict) for name, row in machines.judged(file)]


def test_a_record_is_read_again(recorded):
    (machine,) = read_machines(recorded, manifest()).found
    assert machine.name == "orin"
    assert machine.environment == HERE
    assert machine.parity == (ONNX, replace(ENGINE, rel_l2=None))  # JSON has no infinity
    assert machine.latency == ()
    assert verdicts(read_machines(recorded, manifest()), "model.engine") == [("orin", "pass")]


def test_it_holds_no_long_lists(recorded):
    each = InputParity("normal-0", 0, 0, 0, 1, True, 1, 1)
    record(recorded, manifest(), "orin", HERE, FILES, (replace(ONNX, per_input=(each,)),))
    record(recorded, manifest(), "orin", HERE, FILES, (FAST,))
    content = (recorded / "machines" / "orin.json").read_text()
    assert "per_input" in content  # empty
    assert "normal-0" not in content
    (machine,) = read_machines(recorded, manifest()).found
    assert machine.latency == (replace(FAST, samples_ms=()),)


def test_the_two_kinds_of_rows_stand_beside_each_other(recorded):
    record(recorded, manifest(), "orin", HERE | {"date": "later"}, FILES, (FAST,))
    (machine,) = read_machines(recorded, manifest()).found
    assert len(machine.parity) == 2
    assert len(machine.latency) == 1
    assert machine.environment["date"] == "later"


def test_rows_of_another_environment_are_dropped(recorded):
    record(recorded, manifest(), "orin", HERE | {"gpu": "another"}, FILES, (FAST,))
    (machine,) = read_machines(recorded, manifest()).found
    assert machine.parity == ()


def test_rows_of_another_file_do_not_count_and_are_noted(recorded):
    found = read_machines(recorded, manifest(**{"model.engine": "c" * 64}))
    assert [row.runtime for row in found.found[0].parity] == ["onnxruntime"]
    assert found.judged("model.engine") == []
    (note,) = found.notes
    assert note.startswith("machines/orin.json is about other files")
    nothing = read_machines(recorded, {"files": {}})
    assert (nothing.found, len(nothing.notes)) == ((), 1)


def test_every_machine_that_ran_a_file_is_named_with_its_verdict(recorded):
    record(recorded, manifest(), "xavier", HERE, FILES, (replace(ENGINE, verdict="fail"),))
    found = read_machines(recorded, manifest())
    assert verdicts(found, "model.engine") == [("orin", "pass"), ("xavier", "fail")]
    assert verdicts(found, "model.onnx") == [("orin", "pass")]


def test_a_runtime_that_was_not_run_proves_nothing(recorded):
    record(recorded, manifest(), "orin", HERE, FILES, (replace(ENGINE, verdict="not-run"),))
    assert read_machines(recorded, manifest()).judged("model.engine") == []


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(record_version=2),
        lambda facts: facts.pop("sha256"),
        lambda facts: facts.update(parity=3),
        lambda facts: facts["parity"][0].update(rel_l2="small"),
        lambda facts: facts["parity"][0].update(verdict=None),
        lambda facts: facts["parity"][0].pop("runtime"),
        lambda facts: facts.update(environment=[]) or facts.update(latency=[{"runtime": "x"}]),
        lambda facts: facts.update(runs=[]),
    ],
)
def test_a_damaged_record_is_a_note(recorded, change):
    path = recorded / "machines" / "orin.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    found = read_machines(recorded, manifest())
    assert found.found == ()
    assert found.notes[0].startswith("machines/orin.json cannot be read")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", pytest.param("[" * 100_000, id="nested deeply")]
)
def test_a_record_that_is_not_json_is_a_note_and_is_replaced(recorded, text):
    (recorded / "machines" / "orin.json").write_text(text)
    assert len(read_machines(recorded, manifest()).notes) == 1
    record(recorded, manifest(), "orin", HERE, FILES, (ONNX,))
    assert verdicts(read_machines(recorded, manifest()), "model.onnx") == [("orin", "pass")]


def test_nothing_is_left_beside_a_record(recorded):
    assert [path.name for path in (recorded / "machines").iterdir()] == ["orin.json"]


def test_a_record_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "machines").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*orin\.json"):
        record(tmp_path, manifest(), "orin", HERE, FILES, (ONNX,))


def test_the_name_of_a_machine_is_the_name_of_a_file(monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "../a b/é.local")
    assert machine_name(None) == "a-b-.local"
    monkeypatch.setattr("platform.node", lambda: "")
    assert machine_name(None) == "machine"
    assert machine_name("orin-1") == "orin-1"
    for wrong in ("", "../x", "a/b", ".hidden", "x" * 65, "ä"):
        with pytest.raises(UsageError, match="--name"):
            machine_name(wrong)


def test_rows_of_an_engine_that_was_built_again_do_not_hold():
    rows = [{"runtime": name} for name in ("onnxruntime", "onnxruntime-tensorrt", "tensorrt_rtx")]
    report = {"parity": rows, "engine": {"sha256": "old"}}
    assert present_rows(report, {"engine": {"sha256": "old"}}, "parity") == rows
    assert present_rows(report, {"engine": {"sha256": "new"}}, "parity") == rows[:2]
