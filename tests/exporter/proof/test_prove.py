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
    """`wrong(change)`: a rewrite that changes the model so."""

    def put(change):
        class Wrong(Rewrite):
            name = "fold_fc"

            def find(self, model, clips):
                return [model]

            def fits(self, place):
                return None

            @torch.no_grad()
            def apply(self, place):
                change(place)

        monkeypatch.setitem(REWRITES, "fold_fc", Wrong())

    return put


def scale_a_weight(factor):
    def change(model):
        model.to_out.fn.weight[0, 0] *= factor

    return change


def shift_some_clips(model):
    """Change the logits of clips without a negative value, as no noise is."""

    def add(_model, given, logits):
        return logits + 1e-6 * (given[0].amin((1, 2, 3, 4)) >= 0)[:, None]

    model.register_forward_hook(add)


def mix_clips(model):
    """Change the logits of a clip by those of the clip beside it; alone it is as before."""

    def mix(_model, _given, logits):
        return logits + 1e-6 * (logits.flip(0) - logits)

    model.register_forward_hook(mix)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [scale_a_weight(2.0), scale_a_weight(1 + 1e-6), shift_some_clips, mix_clips]
)
def test_a_rewrite_that_changes_the_function_is_refused(wrong, tiny, tmp_path, change):
    wrong(change)
    with pytest.raises(OnnxError, match="the rewrites made at export changed the function"):
        export(ExportSpec(**tiny), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_rewrite_that_forgets_the_mask_is_refused(wrong, tmp_path):
    def forget(model):
        forward = model.forward
        model.forward = lambda video, _mask=None: forward(video)

    wrong(forget)
    size = {"frames": 2, "res": (32, 32), "depth": 1, "dim": 16, "dim_head": 8, "heads": 2}
    spec = ExportSpec(model="timesformer_pytorch", mask=True, engine="none", **size)
    with pytest.raises(OnnxError, match="the rewrites made at export changed the function"):
        export(spec, tmp_path / "out")


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
