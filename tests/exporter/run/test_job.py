"""Test which inputs a model is proven on: a costly one on fewer, on every command alike."""

import pytest
import torch

from exporter import ExportSpec, export
from exporter.files.reference import REFERENCE, read_reference
from exporter.inputs.clips import TELLING
from exporter.proof.judge import MIN_INPUTS
from exporter.run import job
from exporter.run.job import gather_for
from exporter.target.with_checkpoint import prove_again
from model import FastTimeSformer

SMALL = {"frames": 2, "res": (16, 16), "dim": 32, "depth": 1, "dim_head": 16}


def test_a_model_is_proven_on_few_inputs_only_where_its_runs_take_long(real_clips):
    torch.manual_seed(0)
    small = FastTimeSformer(2, 3, 16, 16, num_classes=2, dim=32, depth=1, dim_head=16)
    large = FastTimeSformer(5, 3, 512, 512, num_classes=2)
    assert len(gather_for(small, (), mask=False).names) == 16
    clip = real_clips["bikes"]
    found = gather_for(large, [clip], mask=True)
    assert found.names[0] == clip.name
    assert set(found.names[1:]) == set(TELLING)
    assert len(TELLING) >= MIN_INPUTS
    assert len(found.arrays["video"]) == len(found.arrays["mask"]) == 1 + len(TELLING)
    assert len(found.taken) == 1


@pytest.mark.slow
def test_an_export_on_few_inputs_is_proven_again_on_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_FLOPS_OF_FEW", 0)
    spec = ExportSpec(**SMALL, engine="none", bench_seconds=0.0)
    made = export(spec, tmp_path / "out")
    kept = read_reference(made.directory / REFERENCE)
    assert {entry.name for entry in kept.inputs} == set(TELLING)
    assert made.verdict == "pass"
    assert {row.inputs for row in made.report.parity if row.judged == "rounding"} == {len(TELLING)}
    report = prove_again(made.directory)
    assert {row.inputs for row in report.parity if row.judged == "rounding"} == {len(TELLING)}
