"""Test which inputs a model is proven on: a costly one on fewer, on every command alike."""

import pytest

from exporter import ExportSpec, export
from exporter.files.reference import REFERENCE, read_reference
from exporter.inputs.clips import TELLING, gather_inputs
from exporter.proof import prove
from exporter.proof.judge import MIN_INPUTS
from exporter.proof.prove import is_costly
from exporter.target.with_checkpoint import prove_again
from model import FastTimeSformer
from model.preprocessing import Preprocessing

SMALL = {"frames": 2, "res": (16, 16), "dim": 32, "depth": 1, "dim_head": 16}


def test_only_a_model_whose_runs_take_long_is_costly():
    sizes = {"num_classes": 2, "dim": 32, "depth": 1, "dim_head": 16}
    assert not is_costly(FastTimeSformer(2, 3, 16, 16, **sizes))
    assert is_costly(FastTimeSformer(5, 3, 512, 512, num_classes=2))


def test_few_inputs_are_the_clips_and_those_that_differ_most(real_clips):
    config, clip = FastTimeSformer(2, 3, 16, 16, num_classes=2).config, real_clips["bikes"]
    plain = Preprocessing.unit(3)
    assert len(gather_inputs([clip], config, plain).names) == 1 + 16
    found = gather_inputs([clip], config, plain, mask=True, few=True)
    assert found.names[0] == clip.name
    assert set(found.names[1:]) == set(TELLING)
    assert len(TELLING) >= MIN_INPUTS
    assert len(found.arrays["video"]) == len(found.arrays["mask"]) == 1 + len(TELLING)
    assert len(found.taken) == 1


@pytest.mark.slow
def test_an_export_on_few_inputs_is_proven_again_on_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(prove, "_COSTLY_FLOPS", 0)
    spec = ExportSpec(**SMALL, engine="none", bench_seconds=0.0)
    made = export(spec, tmp_path / "out")
    kept = read_reference(made.directory / REFERENCE)
    assert {entry.name for entry in kept.inputs} == set(TELLING)
    assert made.verdict == "pass"
    assert {row.inputs for row in made.report.parity if row.judged == "rounding"} == {len(TELLING)}
    report = prove_again(made.directory)
    assert {row.inputs for row in report.parity if row.judged == "rounding"} == {len(TELLING)}
