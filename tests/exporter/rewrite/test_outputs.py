"""Test that rewrites leave the meaning of every output of an export as it is."""

import pytest
import torch

from exporter import ExportSpec
from exporter.load import load_model
from exporter.rewrite import REWRITES, rewrite
from exporter.rewrite.choose import rewrites_to_skip
from model.classifier import VideoClassifier
from model.config import ConfigError
from model.outputs import OUTPUTS

# Large enough that attention and feed-forward are cut into pieces.
SIZES = {"depth": 2, "dim": 32, "dim_head": 16, "frames": 4, "res": (96, 160), "num_classes": 5}
CLIPS = 32  # of a run
EXPECTED = {
    "class_token": {"tokens", "hidden_states", "attentions"},
    "heads_first": {"attentions"},
    "cut_attention": {"attentions"},
    "join_groups": {"attentions"},
}


def loaded(**options):
    spec = ExportSpec(**{**SIZES, "attn": "regular", **options})
    return spec, load_model(spec)


def clips(model: VideoClassifier) -> torch.Tensor:
    config = model.config
    shape = (2, config.frames, config.channels, config.height, config.width)
    return torch.randn(shape, generator=torch.manual_seed(1)).double()


def run(model, video):
    with torch.no_grad():
        made = model(video)
    return dict(zip(model.output_names, made if isinstance(made, tuple) else (made,), strict=True))


def test_the_rules_that_change_an_output_are_known():
    assert {name: {*rule.changes} for name, rule in REWRITES.items() if rule.changes} == EXPECTED


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("rule", EXPECTED)
def test_a_rule_fires_only_where_it_keeps_the_output(rule, output):
    for_openvino = rule == "join_groups"
    precision = "bf16" if for_openvino else "fp32"
    spec, model = loaded(outputs=(output.replace("_", "-"),), batch=CLIPS, precision=precision)
    skip = rewrites_to_skip(spec, model, "openvino" if for_openvino else None)
    if output in EXPECTED[rule]:
        assert skip[rule] == f"it changes what {output} are"
    else:
        assert rule not in skip
    assert REWRITES[rule](model, CLIPS) > 0  # it has places where it would fire


@pytest.mark.parametrize("rule", EXPECTED)
def test_the_rule_would_change_the_output(rule):
    _, model = loaded(outputs=("attentions",), batch=CLIPS)
    video, model = clips(model), model.double()
    truth = run(model, video)["attentions"]
    changed = rewrite(model, set(REWRITES) - {rule}, CLIPS)
    said = {"cut_attention": "groups of one size", "class_token": "equal size"}
    if rule in said:
        with pytest.raises((ConfigError, RuntimeError), match=said[rule]):
            run(changed, video)
        return
    assert run(changed, video)["attentions"].shape != truth.shape


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheme": "joint"},
        {"scheme": "space"},
        {"model": "facebookresearch", "dim_head": None, "heads": 2},
        {"attn": "fastformer"},
        {"attn": "performer"},
    ],
    ids=str,
)
def test_every_output_is_the_same_after_all_rewrites(options, target):
    has_weights = options.get("attn", "regular") == "regular"
    words = ("logits", "features", "tokens", "hidden-states", "attentions")[: 4 + has_weights]
    spec, model = loaded(outputs=words, **options)
    video, exact = clips(model), model.double()
    truth = run(exact, video)
    found = run(rewrite(exact, rewrites_to_skip(spec, model, target)), video)
    assert len(found) == 4 + has_weights
    for name in truth:
        error = (found[name] - truth[name]).norm() / truth[name].norm()
        assert error < 1e-9, name
