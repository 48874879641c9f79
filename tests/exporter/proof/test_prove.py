"""Test that rewrites are proven, and that the proof can fail."""

import json

import pytest
import torch

from exporter import ExportSpec
from exporter.errors import OnnxError
from exporter.pipeline import export
from exporter.rewrite import REWRITES
from exporter.rewrite.rule import Rewrite


@pytest.fixture
def wrong(monkeypatch):
    """`wrong(factor)`: a rewrite that multiplies one weight of the head."""

    def put(factor):
        class Wrong(Rewrite):
            name = "fold_fc"

            def find(self, model, clips):
                return [model]

            def fits(self, place):
                return None

            @torch.no_grad()
            def apply(self, place):
                place.to_out.fn.weight[0, 0] *= factor

        monkeypatch.setitem(REWRITES, "fold_fc", Wrong())

    return put


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2.0, 1 + 1e-6])
def test_a_rewrite_that_changes_the_function_is_refused(wrong, tiny, tmp_path, factor):
    wrong(factor)
    with pytest.raises(OnnxError, match="the rewrites made at export changed the function"):
        export(ExportSpec(**tiny), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_report_says_how_exact_the_rewritten_model_is(exported):
    report = json.loads((exported().directory / "report.json").read_text())
    (stage,) = (stage for stage in report["stages"] if stage["name"] == "rewrite")
    _, _, proof = stage["detail"].rpartition("; ")
    error, _, where = proof.partition(" ")
    assert where == "in float64"
    assert float(error) < 1e-12  # no value was rounded to float32


def test_the_report_lists_the_rewrites_and_why_others_were_not_applied(exported):
    graph = json.loads((exported().directory / "report.json").read_text())["graph"]
    assert "pooled_rotation" in {one["name"] for one in graph["rewrites"]}
    refused = {one["name"]: (one["places"], one["reason"]) for one in graph["rewrites_refused"]}
    assert refused["frame_weights"][1] == "the step is not one patch through all frames"
    assert refused["fold_fc"][0] == 1
