"""Test the kinds of checkpoints that users bring: what wraps a model and what lies beside it."""

import argparse
import gzip
import pickle
import random
import shlex
import sys
import zipfile
from collections import OrderedDict, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model import (
    CheckpointError,
    Preprocessing,
    TimeSformerViT,
    load_checkpoint,
    save_checkpoint,
)
from model.sampling import Sampling, Views

SIZES = {"dim": 16, "depth": 2, "patch_size": 4, "channels": 3}
FRAMES, SIDE, CLASSES, HEADS = 3, 8, 5, 2
OURS_TO_PUBLISHED = {
    "patch_embed.": "patch_embed.proj.",
    "attn_s.norm": "norm1",
    "attn_s.fn.to_qkv": "attn.qkv",
    "attn_s.fn.to_out": "attn.proj",
    "attn_t.norm": "temporal_norm1",
    "attn_t.fn.to_qkv": "temporal_attn.qkv",
    "attn_t.fn.to_out": "temporal_attn.proj",
    "fc_t": "temporal_fc",
    "mlp.norm": "norm2",
    "mlp.fn.": "mlp.",
}
GIVEN = {"heads": HEADS}


def published(seed: int = 0, scheme: str = "divided", head: str | None = "head") -> dict:
    """Return random weights under the names of facebookresearch."""
    torch.manual_seed(seed)
    model = TimeSformerViT(FRAMES, SIDE, SIDE, CLASSES, heads=HEADS, scheme=scheme, **SIZES)
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in OURS_TO_PUBLISHED.items():
            name = name.replace(ours, theirs)
        if name.startswith("head."):
            if head is None:
                continue
            name = name.replace("head", head)
        state[name] = torch.randn(tensor.shape) * 0.1
    return state


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def load(tmp_path: Path, content: object, **arguments: object) -> TimeSformerViT:
    config = {**GIVEN, **arguments.pop("config", {})}
    model = load_checkpoint(save(tmp_path / "m.pth", content), config=config, **arguments)
    assert isinstance(model, TimeSformerViT)
    return model


def refusal(tmp_path: Path, content: object, **arguments: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, content, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_weights(model: TimeSformerViT, state: dict[str, Tensor], head: str = "head") -> None:
    assert torch.equal(model.blocks[1].attn_s.fn.to_qkv.weight, state["blocks.1.attn.qkv.weight"])
    assert torch.equal(model.pos_embed, state["pos_embed"])
    assert torch.equal(model.head.weight, state[f"{head}.weight"])


WRAPPERS = ("state_dict", "model", "model_state", "ema", "net", "params", "weights", "anything")
PREFIXES = (
    "module.", "_orig_mod.", "model.", "net.", "backbone.", "_forward_module.",
    "_fsdp_wrapped_module.", "student.", "model.encoder.",
)  # fmt: skip


class TestWrappers:
    @pytest.mark.parametrize("wrapper", WRAPPERS)
    def test_a_wrapper_of_any_name_is_opened(self, tmp_path, wrapper):
        assert_weights(load(tmp_path, {wrapper: published(), "epoch": 3}), published())

    @pytest.mark.parametrize("prefix", PREFIXES)
    def test_a_prefix_of_any_name_is_removed(self, tmp_path, prefix):
        assert_weights(load(tmp_path, {"state_dict": prefixed(prefix, published())}), published())

    @pytest.mark.parametrize("seed", range(8))
    def test_random_nesting_gives_the_same_weights(self, tmp_path, seed):
        """Several wrappers and prefixes at once, in any order, with other values beside them."""
        choice = random.Random(seed)
        state = prefixed("".join(choice.sample(PREFIXES, 3)), published(seed))
        content: object = {**state, "criterion.weight": torch.ones(CLASSES)}
        for name in choice.sample(WRAPPERS, 3):
            beside = {"step": choice.randrange(9), "hist": [1.5, 2], "tensor": torch.zeros(2)}
            items = [(name, content), *choice.sample(sorted(beside.items(), key=str), 2)]
            choice.shuffle(items)
            content = choice.choice([dict, OrderedDict])(items)
        if choice.random() < 0.5:
            content = [content, {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}]
        model = load(tmp_path, content)
        assert_weights(model, published(seed))
        assert any("left aside" in note and "criterion" in note for note in model.notes)

    def test_wrapping_modules_inside_the_model_are_removed(self, tmp_path):
        state = {
            name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module._orig_mod."): tensor
            for name, tensor in published().items()
        }
        assert_weights(load(tmp_path, prefixed("module.", state)), published())

    @pytest.mark.parametrize(
        "extra",
        [
            {"train_acc.tp": torch.zeros(5, dtype=torch.int64)},
            {"loss_fn.weight": torch.ones(5)},
            {"n_averaged": torch.tensor(3)},
            {"head_aux.weight": torch.ones(7, 16), "head_aux.bias": torch.ones(7)},
            {"auxiliary_head.0.weight": torch.ones(4, 9)},
            {"normalize.mean": torch.full((3,), 0.45), "normalize.std": torch.full((3,), 0.2)},
        ],
        ids=str,
    )
    def test_what_training_adds_is_left_aside_and_told(self, tmp_path, extra):
        model = load(tmp_path, {"state_dict": {**published(), **extra}})
        assert_weights(model, published())
        assert f"left aside beside the model: {', '.join(extra)}" in model.notes

    def test_an_unknown_weight_of_the_model_itself_is_refused(self, tmp_path):
        """It may change the function, as the scales of LayerScale do."""
        for name in ("blocks.0.ls1.gamma", "fc_norm.weight", "dist_token"):
            state = {**published(), name: torch.ones(16)}
            message = refusal(tmp_path, {"model": state})
            assert f"unknown weights: {name}" in message
            if "blocks" not in name:
                assert message.endswith("save the checkpoint without them")

    def test_blocks_with_a_gap_are_refused_with_their_numbers(self, tmp_path):
        state = {k: v for k, v in published().items() if not k.startswith("blocks.0.")}
        assert refusal(tmp_path, state).endswith("without gaps: got 1")

    def test_nan_beside_the_model_does_not_matter_but_in_it_does(self, tmp_path):
        bad = torch.full((5,), float("nan"))
        assert load(tmp_path, {"state_dict": prefixed("model.", published()), "loss": bad})
        state = published() | {"norm.bias": torch.full((16,), float("nan"))}
        assert "NaN" in refusal(tmp_path, {"state_dict": state})


class TestSeveralModels:
    def both(self) -> dict:
        return {"state_dict": published(1), "state_dict_ema": published(2)}

    def test_plain_weights_are_the_default_and_the_notes_tell_it(self, tmp_path):
        model = load(tmp_path, self.both())
        assert_weights(model, published(1))
        assert "state_dict (plain) taken, by default" in model.notes[0]
        assert "state_dict_ema" in model.notes[0]

    @pytest.mark.parametrize("which", ["ema", "state_dict_ema"])
    def test_the_average_is_taken_where_it_is_asked_for(self, tmp_path, which):
        model = load(tmp_path, self.both(), weights=which)
        assert_weights(model, published(2))
        assert "state_dict_ema (ema) taken, as asked" in model.notes[0]

    def test_the_average_inside_a_lightning_state_dict_is_found(self, tmp_path):
        state = {**prefixed("model.", published(1)), **prefixed("ema_model.module.", published(2))}
        assert_weights(load(tmp_path, {"state_dict": state}), published(1))
        assert_weights(load(tmp_path, {"state_dict": state}, weights="ema"), published(2))

    def test_an_average_beside_a_bare_state_dict_is_no_part_of_it(self, tmp_path):
        state = {**published(1), **prefixed("ema.", published(2))}
        assert_weights(load(tmp_path, state), published(1))
        assert_weights(load(tmp_path, state, weights="ema"), published(2))

    def test_an_average_alone_is_loaded_and_told(self, tmp_path):
        model = load(tmp_path, {"ema": prefixed("module.", published())})
        assert_weights(model, published())
        assert "average over the training steps" in model.notes[0]

    def test_mmengine_saves_the_average_under_the_plain_name(self, tmp_path):
        """Its EMAHook swaps the two, so that the average is what its own tools load."""
        content = {
            "meta": {"mmengine_version": "0.10.7"},
            "state_dict": published(1),
            "ema_state_dict": prefixed("module.", published(2)) | {"steps": torch.tensor(3)},
        }
        model = load(tmp_path, content)
        assert_weights(model, published(1))
        assert "state_dict (ema) taken, by default" in model.notes[0]
        assert_weights(load(tmp_path, content, weights="plain"), published(2))

    def test_lightning_saves_the_average_under_the_plain_name(self, tmp_path):
        """Its WeightAveraging keeps the other weights beside them."""
        content = {
            "state_dict": prefixed("model.", published(1)),
            "current_model_state": prefixed("model.", published(2)),
            "averaging_state": {"n_averaged": torch.tensor(3)},
        }
        model = load(tmp_path, content)
        assert_weights(model, published(1))
        assert "state_dict.model (ema) taken, by default" in model.notes[0]
        assert_weights(load(tmp_path, content, weights="plain"), published(2))

    def test_weights_that_do_not_exist_are_refused_with_those_that_do(self, tmp_path):
        message = refusal(tmp_path, self.both(), weights="best")
        assert "'best'" in message
        assert "state_dict (facebookresearch, plain)" in message
        assert "no weights 'ema'" in refusal(tmp_path, {"model": published()}, weights="ema")

    def test_two_plain_models_need_a_choice(self, tmp_path):
        content = {"video": published(1), "other": published(2)}
        assert "--weights video" in refusal(tmp_path, content)
        assert_weights(load(tmp_path, content, weights="other"), published(2))

    def test_two_equal_models_need_no_choice(self, tmp_path):
        assert_weights(load(tmp_path, {"a": published(1), "b": published(1)}), published(1))

    def test_the_state_of_an_optimizer_is_no_model(self, tmp_path):
        content = {"model": published(1), "optimizer": {"master": published(2)}}
        assert_weights(load(tmp_path, content), published(1))


class TestHarmlessContainers:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "beside",
        [
            argparse.Namespace(lr=1, out=Path("/a/b")),
            argparse.Namespace(inner=argparse.Namespace(classes=("a", "b"))),
            np.float64(0.77),
            np.arange(3),
            np.asfortranarray(np.ones((2, 3), np.float32)),
            np.array(["a"]),
            np.random.default_rng(0).bytes(3),
            np.random.default_rng(0),
            np.random.RandomState(0),
            Path("/a/b"),
            defaultdict(list, {"k": [1]}),
            {1, 2},
            frozenset({1}),
            slice(1, 2),
            torch.float16,
        ],
        ids=lambda value: type(value).__name__,
    )
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
    def test_a_harmless_value_beside_the_weights_does_not_matter(self, tmp_path, beside, zipped):
        path = tmp_path / "m.pth"
        content = {"state_dict": published(), "value": beside}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert_weights(load_checkpoint(path, config=GIVEN), published())


class TestHeads:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "head", ["classifier", "fc", "fc_cls", "cls_head.fc_cls", "head.fc", "head.1", "linear",
                 "my_head.out", "classification_head"],
    )  # fmt: skip
    @pytest.mark.parametrize("prefix", ["", "model."])
    def test_a_classifier_of_another_name_is_taken_and_told(self, tmp_path, head, prefix):
        state = prefixed(prefix, published(head=None)) | {
            name: tensor for name, tensor in published(head=head).items() if name.startswith(head)
        }
        model = load(tmp_path, {"state_dict": state})
        assert_weights(model, published(head=head), head)
        assert any(note.startswith("classifier: ") and head in note for note in model.notes)

    def test_a_classifier_without_a_bias_gets_zeros(self, tmp_path):
        state = published()
        del state["head.bias"]
        model = load(tmp_path, {"model": state})
        assert model.head.bias.tolist() == [0.0] * CLASSES
        assert "the classifier has no bias" in model.notes

    def test_without_a_classifier_the_class_token_after_the_last_norm_is_the_output(self, tmp_path):
        whole, bare = load(tmp_path, published()), load(tmp_path, published(head=None))
        video = torch.randn(2, FRAMES, 3, SIDE, SIDE)
        with torch.no_grad():
            assert bare(video).shape == (2, SIZES["dim"])
            assert torch.equal(whole.head(bare(video)), whole(video))
        assert bare.config.num_classes == 0

    def test_the_classifier_can_be_omitted(self, tmp_path):
        model = load(tmp_path, published(), config={"head": None})
        assert model.config.num_classes == 0
        assert "taken without its classifier, as asked" in model.notes

    def test_two_heads_need_a_choice(self, tmp_path):
        state = published(head="head_verb")
        state |= {"head_noun.weight": torch.ones(7, 16), "head_noun.bias": torch.ones(7)}
        message = refusal(tmp_path, state)
        assert "head_verb, head_noun" in message
        assert '{"head": "head_verb"}' in message
        model = load(tmp_path, state, config={"head": "head_noun"})
        assert model.config.num_classes == 7

    def test_a_head_of_two_layers_is_refused(self, tmp_path):
        state = published(head="head.0") | {"head.2.weight": torch.ones(3, 5)}
        assert "several layers" in refusal(tmp_path, state)

    @pytest.mark.parametrize("weight", [torch.ones(5, 48), torch.ones(5, 16, 1, 1)], ids=str)
    @pytest.mark.parametrize("name", ["head", "cls_conv"])
    def test_a_head_that_is_no_linear_map_of_a_token_is_refused(self, tmp_path, name, weight):
        """Without it the file would be exported as one without a classifier."""
        state = prefixed("model.", published(head=None)) | {f"{name}.weight": weight}
        assert "no linear map of a token" in refusal(tmp_path, state)
        assert load(tmp_path, state, config={"head": None}).config.num_classes == 0

    @pytest.mark.parametrize("around", ["context_model", "text_video", "classifier"])
    def test_the_names_around_model_and_head_do_not_matter(self, tmp_path, around):
        state = prefixed(f"{around}.backbone.", published(head=None))
        head = {name: t for name, t in published(head="fc").items() if name.startswith("fc")}
        model = load(tmp_path, state | prefixed(f"{around}.", head))
        assert_weights(model, published(head="fc"), "fc")

    def test_a_linear_map_of_an_unknown_name_is_asked_for(self, tmp_path):
        state = prefixed("video.", published(head=None)) | {"adapter.0.weight": torch.ones(8, 16)}
        message = refusal(tmp_path, state)
        assert "adapter.0" in message
        assert load(tmp_path, state, config={"head": "adapter.0"}).config.num_classes == 8

    def test_classes_that_contradict_a_headless_file_are_refused(self, tmp_path):
        message = refusal(tmp_path, published(head=None), config={"num_classes": 5})
        assert "num_classes is 0 by the absence of a classifier" in message


YAML = """DATA:
  MEAN:
  - 0.4
  - 0.5
  - 0.6
  STD: [0.1, 0.2, 0.3]
  NUM_FRAMES: 3
  SAMPLING_RATE: 32
MODEL:
  NUM_CLASSES: 5
"""
PYTHON = """model = dict(
    backbone=dict(type='TimeSformer', num_frames=3, num_heads=2),
    data_preprocessor=dict(mean=[102.0, 127.5, 153.0], std=[25.5, 51.0, 76.5]))
train_pipeline = [dict(type='SampleFrames', clip_len=3, frame_interval=32)]
"""
STATED = Preprocessing((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), antialias=False)
WINDOW, STEPS = "dense:32@30:window:start:clamp", "dense:32:steps:centre:loop"
CFG = """DATA:
  NUM_FRAMES: 3
  SAMPLING_RATE: 16
  TARGET_FPS: 25
  TEST_CROP_SIZE: 224
  TRAIN_JITTER_SCALES:
  - 256
  - 320
  REVERSE_INPUT_CHANNEL: true
TEST:
  NUM_ENSEMBLE_VIEWS: 2
  NUM_SPATIAL_CROPS: 3
TRAIN:
  DATASET: kinetics
"""
PIPELINES = """clip_len = 3
train_pipeline = [
    dict(type='SampleFrames', clip_len=3, frame_interval=4, num_clips=1),
    dict(type='RandomResizedCrop')]
val_pipeline = [
    dict(type='SampleFrames', clip_len=3, frame_interval=4, num_clips=1, test_mode=True),
    dict(type='CenterCrop', crop_size=224)]
test_pipeline = [
    dict(type='SampleFrames', clip_len=3, frame_interval=4, num_clips=5, test_mode=True,
         out_of_bound_opt='repeat_last'),
    dict(type='ThreeCrop', crop_size=224)]
model = dict(test_cfg=dict(average_clips='score'))
"""


class TestSettings:
    def test_the_last_norm_of_mmaction2_has_the_eps_of_norm_cfg(self, tmp_path):
        """Its other norms have 1e-6 whatever norm_cfg says."""
        told = PYTHON.replace("num_heads=2", "num_heads=2, norm_cfg=dict(type='LN', eps=1e-5)")
        model = load(tmp_path, {"model": published(), "meta": {"cfg": told}})
        assert (model.config.norm_eps, model.config.last_norm_eps) == (1e-6, 1e-5)
        assert model.norm.eps == 1e-5
        assert {m.eps for m in model.blocks.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
        save_checkpoint(model, tmp_path / "own.safetensors")
        assert load_checkpoint(tmp_path / "own.safetensors").norm.eps == 1e-5

    @pytest.mark.parametrize(
        ("beside", "sampling"),
        [
            ({"cfg": YAML}, WINDOW),
            ({"meta": {"cfg": PYTHON}}, STEPS),
            ({"hyper_parameters": {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3],
                                   "sampling_rate": 32}}, WINDOW),
            ({"args": argparse.Namespace(image_mean=[0.4, 0.5, 0.6], image_std=[0.1, 0.2, 0.3],
                                         frame_interval=np.int64(32))}, WINDOW),
        ],
        ids=["yaml", "python", "hyper_parameters", "args"],
    )  # fmt: skip
    def test_mean_deviation_and_sampling_are_read(self, tmp_path, beside, sampling):
        model = load(tmp_path, {"model": published(), **beside})
        how = model.preprocessing
        told = {"sampling": how.sampling, "spacing": how.spacing, "views": how.views}
        assert how == replace(STATED, **told)
        assert str(how.sampling) == sampling
        assert any(f"sampling {sampling} by " in note for note in model.notes)

    def test_a_cfg_of_facebookresearch_tells_the_whole_clip(self, tmp_path):
        model = load(tmp_path, {"model_state": published(), "cfg": CFG})
        how = model.preprocessing
        assert str(how.sampling) == "dense:16@25:window:start:clamp"
        assert how.views == Views(2, 3)
        assert how.spacing == pytest.approx((16 * 3 - 1) / 2 / 25)
        assert (how.short_side, how.channel_order) == (SIDE, "bgr")  # 224 at the model's side

    def test_a_cfg_with_one_crop_resizes_to_the_smallest_scale_of_training(self, tmp_path):
        cfg = CFG.replace("NUM_SPATIAL_CROPS: 3", "NUM_SPATIAL_CROPS: 1")
        how = load(tmp_path, {"model_state": published(), "cfg": cfg}).preprocessing
        assert how.short_side == round(256 * SIDE / 224)

    def test_a_cfg_of_something_something_takes_segments_of_the_whole_file(self, tmp_path):
        cfg = CFG.replace("kinetics", "Ssv2")
        how = load(tmp_path, {"model_state": published(), "cfg": cfg}).preprocessing
        assert how.sampling == Sampling("uniform", "middles")

    def test_the_pipelines_of_openmmlab_tell_the_whole_clip(self, tmp_path):
        model = load(tmp_path, {"model": published(), "meta": {"cfg": PIPELINES}})
        how = model.preprocessing
        assert str(how.sampling) == "dense:4:steps:centre:clamp"
        assert how.views == Views(5, 3, "logits")

    def test_a_clip_table_replaces_what_the_file_tells(self, tmp_path):
        clip = {"sampling": "dense:4@30", "views": "1x1", "short_side": 20}
        content = {"model_state": published(), "cfg": CFG}
        how = load(tmp_path, content, config={"clip": clip}).preprocessing
        assert str(how.sampling) == WINDOW.replace("32", "4")  # the rules are those of the family
        assert (how.views, how.short_side) == (Views(), 20)
        assert how.spacing == pytest.approx((16 * 3 - 1) / 2 / 25)  # the training stays what it was

    def test_a_wrong_clip_table_is_refused(self, tmp_path):
        for clip, part in (({"samplin": "uniform"}, "did you mean 'sampling'"), (3, "a table")):
            with pytest.raises(CheckpointError, match=part):
                load(tmp_path, {"model": published()}, config={"clip": clip})

    def test_without_settings_the_sampling_is_not_known(self, tmp_path):
        assert load(tmp_path, {"model": published()}).preprocessing.sampling is None

    def test_heads_frames_and_size_are_read(self, tmp_path):
        told = {"num_heads": HEADS, "num_frames": FRAMES, "img_size": SIDE}
        content = {"state_dict": published(scheme="space"), "hyper_parameters": {"model": told}}
        model = load_checkpoint(save(tmp_path / "m.ckpt", content))
        assert (model.config.heads, model.config.frames) == (HEADS, FRAMES)

    @pytest.mark.parametrize(
        "labels",
        [list("abcde"), dict(enumerate("abcde")), {name: i for i, name in enumerate("abcde")}],
        ids=["list", "by number", "by name"],
    )
    def test_labels_are_read(self, tmp_path, labels):
        name = "class_to_idx" if isinstance(labels, dict) and "a" in labels else "classes"
        model = load(tmp_path, {"model": published(), "meta": {name: labels}})
        assert model.labels == tuple("abcde")
        assert any(note.startswith("labels by meta.") for note in model.notes)

    def test_a_contradiction_of_file_and_config_names_both(self, tmp_path):
        content = {"model": published(), "args": argparse.Namespace(num_heads=4)}
        message = refusal(tmp_path, content)
        assert "heads is 4 by args.num_heads, but 2 was given" in message

    def test_a_contradiction_within_the_file_names_both_and_the_option(self, tmp_path):
        content = {"model": published(), "hyper_parameters": {"num_frames": 8}}
        message = refusal(tmp_path, content)
        assert "frames is 3 by time_embed of shape (1, 3, 16)" in message
        assert "8 by hyper_parameters.num_frames" in message
        assert "--frames" in message
        assert load(tmp_path, content, config={"frames": 3}).config.frames == 3

    def test_a_setting_that_no_model_can_have_is_named_with_its_place_and_option(self, tmp_path):
        content = {"model": published(), "hyper_parameters": {"num_heads": 3}}
        path = save(tmp_path / "m.pth", content)
        with pytest.raises(CheckpointError, match="multiple of heads 3") as caught:
            load_checkpoint(path)
        told = "heads is 3 by hyper_parameters.num_heads: say what is right with --heads"
        assert str(caught.value).endswith(told)
        with pytest.raises(CheckpointError, match=r"multiple of heads 3: got 16$"):
            load_checkpoint(save(tmp_path / "n.pth", published()), config={"heads": 3})

    @pytest.mark.parametrize("other", ["MVIT", "decoder", "text_encoder", "bert"])
    def test_a_setting_of_another_model_is_not_taken(self, tmp_path, other):
        """SlowFast writes NUM_HEADS of its MViT into every `cfg`."""
        content = {"model": published(), "cfg": {other: {"NUM_HEADS": 1}}}
        with pytest.raises(CheckpointError, match="does not tell heads"):
            load_checkpoint(save(tmp_path / "m.pth", content))
        content["cfg"]["vit"] = {"num_heads": 2}
        model = load_checkpoint(save(tmp_path / "m.pth", content))
        assert model.config.heads == 2
        assert "heads 2 by cfg.vit.num_heads" in model.notes

    def test_a_configuration_of_transformers_is_read(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        config = transformers.TimesformerConfig(
            num_attention_heads=2, num_frames=3, image_size=8, num_labels=5, layer_norm_eps=1e-5
        )
        path = save(tmp_path / "m.pth", {"model": published(), "config": config})
        model = load_checkpoint(path)
        assert (model.config.heads, model.config.norm_eps) == (2, 1e-5)
        assert "norm_eps 1e-05 by config.layer_norm_eps" in model.notes

    def test_settings_in_one_line_of_json_are_read(self, tmp_path):
        content = {"model": published(), "config": '{"model": {"num_heads": 2}, "amp": true}'}
        assert load_checkpoint(save(tmp_path / "m.pth", content)).config.heads == 2

    @pytest.mark.parametrize("name", ["class_to_idx", "label2id"])
    def test_labels_may_contain_dots(self, tmp_path, name):
        labels = ("U.S. flag", "a, b", "c", "d.e", "f")
        content = {"model": published(), name: {text: i for i, text in enumerate(labels)}}
        assert load(tmp_path, content).labels == labels

    @pytest.mark.parametrize("names", [["a", "b"], {"0": "a", "1": "b", "7": "c"}], ids=str)
    def test_labels_that_do_not_fit_are_told(self, tmp_path, names):
        model = load(tmp_path, {"model": published(), "classes": names})
        assert model.labels is None
        assert any("class names of classes not taken" in note for note in model.notes)

    def test_a_mean_of_bytes_with_a_deviation_of_one_is_scaled(self, tmp_path):
        beside = {"mean": [102.0, 127.5, 153.0], "std": [1.0, 1.0, 1.0]}
        how = load(tmp_path, {"model": published(), "hyper_parameters": beside}).preprocessing
        assert how.mean == pytest.approx((0.4, 0.5, 0.6))
        assert how.std == pytest.approx((1 / 255,) * 3)

    def test_the_rate_of_a_sound_is_no_sampling(self, tmp_path):
        content = {"model": published(), "hyper_parameters": {"sampling_rate": 16000}}
        assert load(tmp_path, content).preprocessing.sampling is None

    def test_given_preprocessing_replaces_that_of_the_file_and_both_are_told(self, tmp_path):
        given = {"preprocessing": {"mean": [0.0] * 3, "std": [1.0] * 3}}
        model = load(tmp_path, {"model": published(), "cfg": YAML}, config=given)
        assert (model.preprocessing.mean, model.preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)
        assert any("0.4" in note and "replaced by" in note for note in model.notes)

    def test_two_values_of_one_setting_tell_nothing(self, tmp_path):
        content = {"model": published(), "a": {"num_heads": 2}, "b": {"num_heads": 4}}
        with pytest.raises(CheckpointError, match="does not tell heads"):
            load_checkpoint(save(tmp_path / "m.pth", content))


class TestPaddleVideo:
    def content(self) -> dict:
        state = published(head="head.fc")
        return {
            name if name.startswith("head") else f"backbone.{name}": (
                tensor.numpy().T if tensor.ndim == 2 else tensor.numpy()
            )
            for name, tensor in state.items()
        }

    @pytest.mark.parametrize("protocol", [2, 4, 5])
    @pytest.mark.parametrize("named", [False, True])
    def test_a_pickle_of_arrays_loads_and_its_linear_maps_are_transposed(
        self, tmp_path, protocol, named
    ):
        content = {key: (key, value) if named else value for key, value in self.content().items()}
        content["StructuredToParameterName@@"] = {"backbone.cls_token": "param_0"}
        path = tmp_path / "m.pdparams"
        path.write_bytes(pickle.dumps(content, protocol))
        model = load_checkpoint(path, config=GIVEN)
        assert_weights(model, published(head="head.fc"), "head.fc")
        assert any("PaddlePaddle" in note for note in model.notes)


@pytest.mark.parametrize(
    ("settings", "task", "told"),
    [
        ({"cfg": "MODEL:\n  LOSS_FUNC: bce_logit\n  NUM_CLASSES: 5\n"}, "multi-label", True),
        ({"cfg": "MODEL:\n  LOSS_FUNC: cross_entropy\n"}, "single-label", False),
        ({"meta": {"cfg": "head = dict(multi_class=True,\n  num_classes=5)"}}, "multi-label", True),
        (
            {"meta": {"cfg": "h = dict(\n  loss_cls=dict(type='BCELossWithLogits'))"}},
            "multi-label",
            True,
        ),
        ({"config": {"problem_type": "regression"}}, "regression", True),
        (
            {"meta": {"cfg": "a = dict(\n  type='CrossEntropyLoss')\nb = dict(type='mse')"}},
            "single-label",
            False,
        ),
        ({}, "single-label", False),
    ],
)
def test_the_loss_of_the_training_tells_what_logits_mean(tmp_path, settings, task, told):
    model = load(tmp_path, {"model": published(), **settings})
    assert model.task == task
    assert any(note.startswith("task by ") for note in model.notes) == told
    assert load(
        tmp_path, {"model": published(), **settings}, config={"task": "regression"}
    ).task == ("regression")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"weights"), "compressed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b'{\n  "model_type": "timesformer"\n}\n', "JSON, not weights: give its directory"),
        (b"\x93NUMPY\x01\x00v\x00", "array of NumPy"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"a" + bytes(256) + b"ustar", "tar archive"),
    ],
    ids=["gzip", "lfs", "html", "json", "npy", "hdf5", "tar"],
)
def test_another_kind_of_file_is_named_with_the_remedy(tmp_path, content, kind):
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=kind) as caught:
        load_checkpoint(path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), [("m.pth", "zip archive of m.pth"), ("a.npy", "NumPy")])
def test_an_archive_that_is_no_torch_file_is_named(tmp_path, name, kind):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr(name, b"weights")
    with pytest.raises(CheckpointError, match=kind):
        load_checkpoint(tmp_path / "m.zip")


def test_a_part_of_a_sharded_checkpoint_is_refused_with_its_converter(tmp_path):
    empty = {name: torch.empty(0) for name in published()}
    assert "zero_to_fp32.py" in refusal(tmp_path, {"module": empty})
    assert "FULL_STATE_DICT" in refusal(tmp_path, {"blocks.0._flat_param": torch.ones(9)})


def test_what_the_file_does_not_tell_names_options_that_exist(tmp_path):
    state = published() | {"pos_embed": torch.ones(1, 4, 16)}
    message = refusal(tmp_path, state)
    assert message.endswith("on the command line --res")
    assert load(tmp_path, state, config={"height": 4, "width": 12}).config.grid == (1, 3)


def test_the_command_for_a_file_with_a_class_converts_it(tmp_path):
    """A class has the method `state_dict` too, and settings are kept."""
    content = {"model": published(), "args": {"num_heads": 2, "optimizer": torch.optim.AdamW}}
    path = save(tmp_path / "m.pth", [content])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    python, option, code = shlex.split(str(caught.value).partition("imported: ")[2])
    assert (python, option) == ("python", "-c")
    exec(code.replace('"weights.pth"', repr(str(tmp_path / "weights.pth"))), {})
    model = load_checkpoint(tmp_path / "weights.pth")
    assert isinstance(model, TimeSformerViT)
    assert_weights(model, published())
    assert model.config.heads == 2


def test_the_command_for_a_class_of_a_program_imports_it(tmp_path, monkeypatch):
    kind = type("Config", (), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Config", kind, raising=False)
    message = refusal(tmp_path, {"model": published(), "args": kind()})
    assert "'from SCRIPT import Config; import torch;" in message
