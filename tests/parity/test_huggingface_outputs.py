"""Compare tokens, hidden states and attentions with those of transformers on the same pixels.

The models have random sizes. `tests/parity/test_huggingface_oracle.py` compares logits.
"""

import os
import random

import pytest
import torch

from exporter import ExportSpec, export
from exporter.report import plots
from model import load_checkpoint

os.environ["HF_HUB_OFFLINE"] = "1"  # transformers reads it at import

from transformers import TimesformerConfig, TimesformerForVideoClassification, TimesformerModel
from transformers.utils import logging

pytestmark = pytest.mark.slow  # the published package runs beside ours

logging.disable_progress_bar()

LIMIT = 1e-9  # relative L2 in float64
KINDS = ("divided_space_time", "joint_space_time", "space_only")
CASES = [(number, KINDS[number % 3]) for number in range(12)]
IDS = [f"{number}-{kind}" for number, kind in CASES]


def make(number: int, kind: str, *, head: bool = False) -> TimesformerModel:
    """Build a model of random sizes whose every parameter has an effect."""
    draw = random.Random(number)
    heads, patch = draw.choice((1, 2, 3, 5)), draw.choice((3, 4, 5, 8))
    config = TimesformerConfig(
        image_size=patch * draw.randint(2, 5),
        patch_size=patch,
        num_channels=draw.choice((1, 3, 4)),
        num_frames=draw.choice((1, 2, 3, 5)),
        hidden_size=heads * draw.choice((4, 6, 7)),
        num_hidden_layers=draw.choice((1, 1, 2, 3)),
        num_attention_heads=heads,
        intermediate_size=draw.choice((16, 31, 50)),
        hidden_act=draw.choice(("gelu", "relu", "gelu_new")),
        qkv_bias=draw.choice((True, False)),
        attention_type=kind,
        attn_implementation="eager",
    )
    torch.manual_seed(number)
    model = (TimesformerForVideoClassification if head else TimesformerModel)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "layernorm" in name and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.3)
    return model


def clips(config: TimesformerConfig) -> torch.Tensor:
    sides = (config.image_size, config.image_size)
    shape = (2, config.num_frames, config.num_channels, *sides)
    return torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(1))


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return ((got - truth).norm() / truth.norm()).item()


def test_the_cases_cover_all_kinds():
    assert len(CASES) >= 12
    assert {kind for _, kind in CASES} == {*KINDS}
    assert {make(*case).config.num_hidden_layers for case in CASES} == {1, 2, 3}


@pytest.mark.parametrize(("number", "kind"), CASES, ids=IDS)
def test_outputs_equal_those_of_transformers(tmp_path, number, kind):
    theirs = make(number, kind)
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path).double()
    video = clips(theirs.config)
    with torch.no_grad():
        truth = theirs.double()(video, output_hidden_states=True, output_attentions=True)
        made = ours.compute(("tokens", "hidden_states", "attentions", "features"), video)
    depth = theirs.config.num_hidden_layers
    frames_of_clip = (2, theirs.config.num_frames) if kind == "space_only" else (2,)

    last = truth.last_hidden_state.unflatten(0, frames_of_clip)
    assert made["tokens"].shape == last.shape
    assert error(made["tokens"], last) <= LIMIT

    assert made["hidden_states"].shape[1] == 1 + depth == len(truth.hidden_states)
    for i, states in enumerate(truth.hidden_states):
        assert error(made["hidden_states"][:, i], states.unflatten(0, frames_of_clip)) <= LIMIT

    assert made["attentions"].shape[1] == depth == len(truth.attentions)
    for i, weights in enumerate(truth.attentions):
        assert error(made["attentions"][:, i], weights.unflatten(0, (2, -1))) <= LIMIT

    if kind != "space_only":  # which has no single class token in transformers
        assert error(made["features"], last[:, 0]) <= LIMIT


@pytest.mark.usefixtures("quick_exports")
@pytest.mark.parametrize(("number", "kind"), CASES, ids=IDS)
def test_the_same_outputs_are_exported_and_proven_in_onnx_runtime(
    tmp_path, monkeypatch, number, kind
):
    monkeypatch.setattr(plots, "plot", lambda *_: "")  # drawing takes time, and is tested elsewhere
    make(number, kind, head=True).save_pretrained(tmp_path / "theirs")
    words = ("logits", "features", "tokens", "hidden-states", "attentions")
    quick = {"engine": "none", "bench_seconds": 0.0, "runtimes": ("onnxruntime",)}
    spec = ExportSpec(checkpoint=tmp_path / "theirs", outputs=words, **quick)
    result = export(spec, tmp_path / "x")
    rows = [row for row in result.report.parity if row.runtime == "onnxruntime"]
    assert [row.output for row in rows] == [word.replace("-", "_") for word in words]
    assert {row.verdict for row in result.report.parity} == {"pass"}
