"""Test all rewrites together: purity, figures, skipped rewrites, precision, names, the graph."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from exporter.graph.modules import read_module_outputs
from exporter.rewrite import REWRITES, rewrite, rewrite_measured
from exporter.rewrite.measure import measure
from exporter.rewrite.rule import PRECISIONS, RUNTIMES
from exporter.spec import BF16_OPSET, DEFAULT_OPSET, BatchProfile
from exporter.to_onnx.export import export_onnx
from model.config import MECHANISM_NAMES, SCHEME_NAMES
from model.precision import lower_precision, rounded_modules

BY_HEAD = ["class_token", "fold_norm", "fold_fc", "frame_weights", "heads_first"]
FOR_TENSORRT_ALONE = {name for name, rule in REWRITES.items() if "onnxruntime" not in rule.targets}
FIRE = {
    "regular": [*BY_HEAD, "bias_apart"],
    "performer": [*BY_HEAD, "few_features", "bias_apart"],
    "fastformer": [
        "class_token",
        "fold_norm",
        "frame_weights",
        "pooled_rotation",
        "fold_global_key",
        "bias_apart",
    ],
}


def names(fired):
    return [one.name for one in fired]


# --- the function


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_the_rewritten_model_has_the_same_function(make, clips, rel_l2, attn, scheme):
    model = make(attn, scheme).double()
    rewritten, fired, _ = rewrite_measured(model)
    assert fired
    assert rel_l2(rewritten(clips.double()), model(clips.double())) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"semantics": "upstream"},
        {"semantics": "upstream", "scheme": "joint"},
        {"rotary_emb": False},
        {"family": "timesformer_vit"},
        {"family": "timesformer_vit", "scheme": "axial"},
        {"dim": 36, "dim_head": 18},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_the_rewritten_model_of_every_family_has_the_same_function(
    make, clips, rel_l2, attn, options
):
    model = make(attn, **options).double()
    rewritten = rewrite_measured(model).model
    limit = 1e-10 if attn == "performer" and "semantics" in options else 1e-12
    assert rel_l2(rewritten(clips.double()), model(clips.double())) <= limit


@pytest.mark.slow
@pytest.mark.parametrize("shift_tokens", [True, False])
def test_a_family_with_other_blocks_gets_only_norms_and_biases(make, clips, rel_l2, shift_tokens):
    model = make(family="timesformer_pytorch", shift_tokens=shift_tokens)
    rewritten, fired, _ = rewrite_measured(model)
    assert names(fired) == ([] if shift_tokens else ["fold_norm"]) + ["bias_apart"]
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert rel_l2(rewritten(clips, mask), model(clips, mask)) <= 1e-6


@pytest.mark.parametrize("ln_pre", [True, False])
def test_a_space_time_transformer_gets_only_norms_and_biases(make, clips, rel_l2, ln_pre):
    model = make(family="frozen_in_time", ln_pre=ln_pre, hidden_act="quick_gelu").double()
    rewritten, fired, _ = rewrite_measured(model)
    assert names(fired) == ["fold_norm", "bias_apart"]
    assert [one.places for one in fired] == [6, 4]  # three and two in each of two blocks
    assert rel_l2(rewritten(clips.double()), model(clips.double())) <= 1e-12


def test_a_model_with_channels_first_has_the_same_function(make, clips, rel_l2):
    model = make(frames_first=False).double()
    rewritten = rewrite_measured(model).model
    clips = clips.double().transpose(1, 2)
    assert rel_l2(rewritten(clips), model(clips)) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("left_out", REWRITES)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_each_rewrite_can_be_left_out(make, clips, rel_l2, attn, left_out):
    model = make(attn).double()
    rewritten, fired, _ = rewrite_measured(model, skip={left_out, *FOR_TENSORRT_ALONE})
    expected = [name for name in FIRE[attn] if name != left_out]
    if (attn, left_out) == ("fastformer", "class_token"):
        expected.remove("bias_apart")  # fold_global_key folds every output projection
    assert names(fired) == expected
    assert rel_l2(rewritten(clips.double()), model(clips.double())) <= 1e-12


# --- the contract


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_the_original_model_is_not_changed(make, clips, attn):
    model = make(attn)
    kinds = [type(module) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    logits = model(clips)
    rewritten = rewrite_measured(model).model
    rewrite_measured(rewritten)  # a second call must not change the original either
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(clips), logits)


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_no_rewrite_fires_on_a_rewritten_model(make, attn):
    rewritten, fired, _ = rewrite_measured(make(attn))
    assert fired
    assert rewrite_measured(rewritten)[1] == ()


def test_all_rewrites_can_be_left_out(make, clips):
    model = make()
    same, fired, _ = rewrite_measured(model, skip=REWRITES)
    assert fired == ()
    assert torch.equal(same(clips), model(clips))


def test_an_unknown_name_lists_the_known(make):
    with pytest.raises(ValueError, match=r"unknown rewrite 'fold_fv'.*class_token.*'fold_fc'"):
        rewrite_measured(make(), skip=["fold_fv"])


@pytest.mark.slow
def test_the_rewritten_model_is_in_evaluation_mode(make):
    assert not rewrite_measured(make().train())[0].training


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_the_modules_keep_their_paths(make, attn):
    model = make(attn)
    assert set(rounded_modules(rewrite_measured(model)[0])) == set(rounded_modules(model))


# --- the figures


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_the_model_is_the_same_with_and_without_figures(make, clips, attn):
    model = make(attn)
    measured, fired, _ = rewrite_measured(model)
    assert torch.equal(rewrite(model)(clips), measured(clips))
    assert (
        rewrite_measured(make(attn, drop_path=0.5).train())[1] == fired
    )  # the measured model drops no path


@pytest.mark.slow
def test_savings_add_up_to_the_difference_in_cost(make):
    model = make("regular")
    rewritten, fired, _ = rewrite_measured(model)
    total = measure(model) - measure(rewritten)
    assert sum(one.operations_saved for one in fired) == total.operations
    assert sum(one.flops_saved for one in fired) == total.flops > 0
    assert sum(one.bytes_saved for one in fired) == total.bytes


def test_folding_a_projection_saves_its_product(make):
    fired = rewrite_measured(make("regular"), skip=set(REWRITES) - {"fold_fc"}).fired
    (one,) = fired
    tokens, dim = 3 * 15, 12
    assert (one.name, one.places) == ("fold_fc", 2)
    assert one.operations_saved == 2
    assert one.flops_saved == 2 * 2 * tokens * dim * dim
    assert one.bytes_saved == 2 * 4 * (2 * tokens * dim + dim * dim + dim)


def test_unused_results_have_no_cost(make):
    """A graph omits the patches' feed-forward of the last block, with or without a rewrite."""
    model = make("regular", "joint", depth=1)
    flops = measure(model).flops
    model.blocks[0].mlp.fn.forward = lambda x: x  # of the class token and the patches
    tokens, dim = 1, 12
    assert flops - measure(model).flops == 2 * tokens * dim * 12 * dim


# --- lower precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_lower_precision_is_as_accurate_as_without_rewrites(make, clips, rel_l2, attn, dtype):
    model = make(attn)
    truth = copy.deepcopy(model).double()(clips.double())
    rewritten = rewrite(model, skip=["fold_norm", "bias_apart"])  # see rewrites_to_skip
    lower_precision(model, dtype)
    lower_precision(rewritten, dtype)
    logits = rewritten(clips)
    assert logits.dtype == torch.float32
    assert rewritten.blocks[0].attn_t.fn.to_out.weight.dtype == dtype
    assert rel_l2(logits, truth) <= 2 * rel_l2(model(clips), truth)


@pytest.mark.slow
def test_modules_are_kept_in_float32_by_their_paths(make):
    rewritten = rewrite_measured(make()).model
    kept = lower_precision(rewritten, torch.float16, [r"blocks\.0", r"blocks\.1\.fc_t"])
    assert "blocks.0.fc_t" in kept
    assert rewritten.blocks[0].attn_t.fn.rotated_key.dtype == torch.float32
    assert rewritten.blocks[1].attn_t.fn.rotated_key.dtype == torch.float16


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_a_rewritten_model_can_be_exported_in_bfloat16(make, clips, attn, tmp_path):
    rewritten = rewrite_measured(make(attn, depth=1)).model
    lower_precision(rewritten, torch.bfloat16)
    export_onnx(rewritten, {"video": clips}, tmp_path / "model.onnx", opset=BF16_OPSET)


# --- the graph


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_the_graph_has_the_same_logits_at_any_batch(make, clips, rel_l2, attn, tmp_path):
    """The graph also has the path of every module."""
    path = tmp_path / "model.onnx"
    model = make(attn, depth=1)
    rewritten = rewrite_measured(model).model
    profile = BatchProfile(1, 2, 4)
    inputs = {"video": clips}
    graph = export_onnx(rewritten, inputs, path, opset=DEFAULT_OPSET, dynamic_batch=profile)
    assert graph.inputs[0].shape[0] == "batch"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 3):
        video = torch.cat((clips, clips))[:batch]
        (logits,) = session.run(None, {"video": np.asarray(video)})
        assert rel_l2(torch.from_numpy(logits), model(video)) <= 1e-5
    found = {name for name, values in read_module_outputs(onnx.load(path)).items() if values}
    modules = {"blocks.0", "blocks.0.attn_t.fn", "blocks.0.attn_s.fn", "blocks.0.mlp.fn"}
    assert modules | {"project_in", "to_out"} <= found


# --- refusals


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_every_place_is_changed_or_refused_with_a_reason(make, attn):
    model = make(attn)
    rewritten = rewrite_measured(model)
    attention_steps = 2 * len(model.blocks)
    for name in ("fold_fc", "frame_weights", "heads_first", "few_features", "pooled_rotation"):
        changed = sum(one.places for one in rewritten.fired if one.name == name)
        refused = [one for one in rewritten.refused if one.name == name]
        assert changed + sum(one.places for one in refused) == attention_steps
        assert all(one.reason for one in refused)


def test_a_refusal_says_why(make):
    reasons = {(one.name, one.reason): one.places for one in rewrite_measured(make()).refused}
    assert reasons["fold_fc", "no linear map follows the step"] == 2
    assert reasons["few_features", "the mechanism has no random features"] == 4
    assert reasons["cut_attention", "the attention weights of all groups fit the cache"] == 3


def test_a_rewrite_that_was_applied_refuses_to_be_applied_again(make):
    again = rewrite_measured(rewrite(make("performer")))
    reasons = {(one.name, one.reason) for one in again.refused}
    assert ("few_features", "it is applied already") in reasons
    assert ("heads_first", "it is applied already") in reasons


@pytest.mark.parametrize("rule", REWRITES.values(), ids=REWRITES)
def test_every_rule_is_registered_by_name_and_documented(rule):
    assert REWRITES[rule.name] is rule
    assert len(type(rule).__doc__.splitlines()) > 3
    assert rule.targets <= {*RUNTIMES, "openvino"}
    assert rule.precisions <= PRECISIONS
    assert rule.targets
    assert rule.precisions
