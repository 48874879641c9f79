"""Test the kinds of checkpoints of Frozen-in-Time, EgoVLP and LaViLa, and what is refused."""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from model import (
    CheckpointError,
    SpaceTimeTransformer,
    TimeSformerViT,
    load_checkpoint,
    save_checkpoint,
)
from model.config import ConfigError, SpaceTimeConfig

FRAMES, SIDE, CLASSES, HEADS, DIM = 3, 8, 5, 2, 16
OURS_TO_PUBLISHED = {
    "time_embed": "temporal_embed",
    "patch_embed.": "patch_embed.proj.",
    "attn_s.norm": "norm1",
    "attn_s.fn.to_qkv": "attn.qkv",
    "attn_s.fn.to_out.0": "attn.proj",
    "attn_t.norm": "norm3",
    "attn_t.fn.to_qkv": "timeattn.qkv",
    "attn_t.fn.to_out.0": "timeattn.proj",
    "mlp.norm": "norm2",
    "mlp.fn.": "mlp.",
}


def make(**options: object) -> SpaceTimeTransformer:
    sizes = {"dim": DIM, "depth": 2, "heads": HEADS, "patch_size": 4}
    config = SpaceTimeConfig(FRAMES, 3, SIDE, SIDE, CLASSES, **{**sizes, **options})
    torch.manual_seed(0)
    return SpaceTimeTransformer(config).eval()


def published(prefix: str = "", head: str | None = "head", **options: object) -> dict[str, Tensor]:
    """Return random weights under the names of the originals, the classifier under `head`."""
    state = {}
    for name, tensor in make(**options).state_dict().items():
        random = torch.randn(tensor.shape) * 0.1
        if name == "patch_embed.bias" and options.get("ln_pre"):
            continue
        if not name.startswith("head."):
            for ours, theirs in OURS_TO_PUBLISHED.items():
                name = name.replace(ours, theirs)
            state[prefix + name] = random
        elif head is not None:
            state[name.replace("head", head)] = random
    return state


def load(tmp_path: Path, content: object, **arguments: object) -> SpaceTimeTransformer:
    torch.save(content, tmp_path / "m.pth")
    config = {"heads": HEADS, **arguments.pop("config", {})}
    model = load_checkpoint(tmp_path / "m.pth", config=config, **arguments)
    assert isinstance(model, SpaceTimeTransformer)
    return model


def refusal(tmp_path: Path, content: object, **arguments: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, content, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


DUAL = {
    "module.text_model.transformer.layer.0.attention.q_lin.weight": torch.ones(DIM, DIM),
    "module.txt_proj.1.weight": torch.ones(8, DIM),
    "module.vid_proj.0.weight": torch.ones(8, DIM),
    "module.vid_proj.0.bias": torch.ones(8),
}
CLIP = {
    "module.transformer.resblocks.0.mlp.c_fc.weight": torch.ones(4 * DIM, DIM),
    "module.token_embedding.weight": torch.ones(7, DIM),
    "module.image_projection": torch.ones(DIM, 8),
    "module.logit_scale": torch.tensor(4.6),
}


class TestFiles:
    @pytest.mark.parametrize("ln_pre", [False, True])
    @pytest.mark.parametrize(
        "prefix", ["", "module.", "video_model.", "module.visual.", "_orig_mod.module.visual."]
    )
    def test_a_model_below_any_prefix_is_found(self, tmp_path, prefix, ln_pre):
        state = published(prefix, ln_pre=ln_pre)
        model = load(tmp_path, {"epoch": 1, "state_dict": state})
        assert (model.config.ln_pre, model.config.num_classes) == (ln_pre, CLASSES)
        assert model.config.hidden_act == ("quick_gelu" if ln_pre else "gelu")
        weight = state[f"{prefix}blocks.1.timeattn.qkv.weight"]
        assert torch.equal(model.blocks[1].attn_t.fn.to_qkv.weight, weight)

    @pytest.mark.parametrize(
        ("prefix", "beside"), [("module.video_model.", DUAL), ("module.visual.", CLIP)]
    )
    def test_a_model_beside_that_of_its_texts_gives_features(self, tmp_path, prefix, beside):
        model = load(tmp_path, {"state_dict": published(prefix, head=None) | beside})
        assert model.config.num_classes == 0
        assert any("left aside" in note for note in model.notes)

    def test_the_shared_projection_can_be_taken_as_the_last_layer(self, tmp_path):
        content = {"state_dict": published("module.video_model.", head=None) | DUAL}
        assert load(tmp_path, content, config={"head": "vid_proj.0"}).config.num_classes == 8

    def test_the_classifier_of_lavila_is_found_with_its_arguments(self, tmp_path):
        arguments = argparse.Namespace(clip_length=FRAMES, num_classes=[CLASSES], fix_lr=True)
        state = published("module.visual.", "module.fc_cls", ln_pre=True)
        model = load(tmp_path, {"state_dict": state, "args": arguments})
        assert torch.equal(model.head.weight, state["module.fc_cls.weight"])
        assert any("module.fc_cls" in note for note in model.notes)

    def test_one_of_several_classifiers_of_lavila_is_chosen(self, tmp_path):
        state = published("module.visual.", "module.fc_cls.0", ln_pre=True)
        state["module.fc_cls.1.weight"] = torch.ones(7, DIM)
        assert "fc_cls.0, module.fc_cls.1" in refusal(tmp_path, state)
        config = {"head": "module.fc_cls.1"}
        assert load(tmp_path, state, config=config).config.num_classes == 7

    @pytest.mark.parametrize(("number", "outputs"), [(2, 7), (1, DIM)])
    def test_a_stack_of_layers_is_no_list_of_classifiers(self, tmp_path, number, outputs):
        state = published("module.visual.", "module.fc_cls.0", ln_pre=True)
        state[f"module.fc_cls.{number}.weight"] = torch.ones(outputs, DIM)
        message = refusal(tmp_path, state, config={"head": "module.fc_cls.0"})
        assert "several layers" in message

    def test_plain_weights_are_taken_beside_averaged_ones(self, tmp_path):
        plain = published()
        averaged = {name: 2 * tensor for name, tensor in plain.items()}
        content = {"state_dict": plain, "state_dict_ema": averaged}
        assert torch.equal(load(tmp_path, content).pos_embed, plain["pos_embed"])
        ema = load(tmp_path, content, weights="ema")
        assert torch.equal(ema.pos_embed, averaged["pos_embed"])

    def test_the_config_that_frozen_in_time_saves_is_read_as_plain_values(
        self, tmp_path, monkeypatch
    ):
        module = ModuleType("parse_config")
        parser = type("ConfigParser", (), {"__module__": "parse_config"})
        module.ConfigParser = parser
        monkeypatch.setitem(sys.modules, "parse_config", module)
        config = parser()
        config._config = {"arch": {"args": {"video_params": {"num_frames": FRAMES}}}}
        config.resume = Path("saved")
        torch.save({"state_dict": published(), "config": config}, tmp_path / "m.pth")
        monkeypatch.delitem(sys.modules, "parse_config")
        model = load_checkpoint(tmp_path / "m.pth", config={"heads": HEADS})
        assert model.config.frames == FRAMES

    @pytest.mark.parametrize("ln_pre", [False, True])
    def test_our_own_file_loads_without_arguments(self, tmp_path, ln_pre):
        model = make(ln_pre=ln_pre)
        save_checkpoint(model, tmp_path / "m.safetensors")
        loaded = load_checkpoint(tmp_path / "m.safetensors")
        assert loaded.config == model.config
        video = torch.randn(2, FRAMES, 3, SIDE, SIDE)
        with torch.no_grad():
            assert torch.equal(loaded(video), model(video))

    @pytest.mark.parametrize(("dim", "depth", "heads"), [(768, 12, 12), (1024, 24, 16)])
    def test_the_heads_of_the_published_sizes_are_known(self, dim, depth, heads):
        from model.families.frozen_in_time import FROZEN_IN_TIME
        from model.weights.file import WeightsFile

        state = {f"blocks.{block}.attn.qkv.bias": torch.ones(1) for block in range(depth)}
        state["cls_token"] = torch.ones(1, 1, dim)
        state["pos_embed"] = torch.ones(1, 197, dim)
        state["patch_embed.proj.weight"] = torch.ones(dim, 3, 16, 16)
        told = FROZEN_IN_TIME.infer(WeightsFile(state=state), {})
        assert told["heads"].value == heads


class TestTraining:
    def test_every_parameter_gets_a_gradient(self):
        model = make(ln_pre=True).train()
        model(torch.randn(2, FRAMES, 3, SIDE, SIDE)).square().sum().backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())

    @pytest.mark.parametrize("rate", ["drop_path", "proj_dropout"])
    def test_a_rate_acts_in_training_only(self, rate):
        model, without = make(**{rate: 0.5}), make()
        video = torch.randn(8, FRAMES, 3, SIDE, SIDE)
        with torch.no_grad():
            assert torch.equal(model(video), without(video))
            assert not torch.equal(model.train()(video), without(video))


class TestRefusals:
    def test_unknown_heads_are_asked_for(self, tmp_path):
        torch.save(published(), tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match="does not tell heads"):
            load_checkpoint(tmp_path / "m.pth")

    def test_facebookresearch_names_the_family_of_the_file(self, tmp_path):
        message = refusal(tmp_path, published(), family="facebookresearch")
        assert "give the family frozen_in_time" in message

    def test_a_file_of_facebookresearch_is_not_of_this_family(self, tmp_path):
        torch.manual_seed(0)
        model = TimeSformerViT(FRAMES, SIDE, SIDE, CLASSES, DIM, 1, HEADS, 4, scheme="space")
        state = {"blocks.0.attn.qkv.weight": model.blocks[0].attn_s.fn.to_qkv.weight.detach()}
        assert "is not of family frozen_in_time" in refusal(
            tmp_path, state, family="frozen_in_time"
        )

    def test_gates_on_time_are_refused_with_a_way_out(self, tmp_path):
        state = published(ln_pre=True) | {"blocks.0.alpha_timeattn": torch.tensor(0.5)}
        assert "by tanh(alpha_timeattn)" in refusal(tmp_path, state)

    def test_a_layer_before_the_classifier_is_refused(self, tmp_path):
        state = published() | {"pre_logits.fc.weight": torch.ones(DIM, DIM)}
        assert "pre_logits" in refusal(tmp_path, state)

    @pytest.mark.parametrize(
        "options", [{"scheme": "joint"}, {"attn": "performer"}, {"attn_dropout": 0.1}], ids=str
    )
    def test_choices_of_other_families_are_refused(self, options):
        with pytest.raises(ConfigError, match=f"has only {next(iter(options))}"):
            make(**options)
