"""Test the public interface of TimeSformer: the published call, training, masks and errors."""

import copy
import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import (
    CheckpointError,
    ConfigError,
    FastTimeSformer,
    TimeSformer,
    load_checkpoint,
    save_checkpoint,
)
from model.families.timesformer_pytorch import TIMESFORMER_PYTORCH
from model.spacetime import Grid
from model.timesformer_layer import TokenShift

SMALL = {"dim": 20, "num_frames": 3, "num_classes": 4, "image_size": (8, 12), "patch_size": 4,
         "depth": 2, "heads": 2, "dim_head": 6}  # fmt: skip
CLIP = (3, 3, 8, 12)
UNTOLD = {"num_frames": 3, "image_size": (8, 12)}  # a file with rotary embedding lacks these
KINDS = [
    pytest.param({"rotary_emb": rotary, "shift_tokens": shift}, id=f"{name}-{how}")
    for rotary, name in ((True, "rotary"), (False, "learned"))
    for shift, how in ((False, "still"), (True, "shift"))
]


def make(seed: int = 0, **options: object) -> TimeSformer:
    torch.manual_seed(seed)
    return TimeSformer(**{**SMALL, **options}).eval()


def clips(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, *CLIP, generator=torch.Generator().manual_seed(seed))


def rel_l2(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth.double()).norm() / truth.double().norm()).item()


class TestPublishedUse:
    def test_constructor_takes_the_published_arguments_by_keyword_only(self):
        published = {
            "image_size": 224, "patch_size": 16, "channels": 3, "depth": 12, "heads": 8,
            "dim_head": 64, "attn_dropout": 0.0, "ff_dropout": 0.0, "rotary_emb": True,
            "shift_tokens": False,
        }  # fmt: skip
        parameters = inspect.signature(TimeSformer).parameters
        assert {parameter.kind for parameter in parameters.values()} == {
            inspect.Parameter.KEYWORD_ONLY
        }
        assert list(parameters) == ["dim", "num_frames", "num_classes", *published]
        assert {name: parameters[name].default for name in published} == published

    @pytest.mark.slow
    @torch.no_grad()
    def test_readme_example_gives_logits(self):
        model = TimeSformer(
            dim=512, image_size=224, patch_size=16, num_frames=8, num_classes=10, depth=12,
            heads=8, dim_head=64, attn_dropout=0.1, ff_dropout=0.1,
        ).eval()  # fmt: skip
        video = torch.randn(2, 8, 3, 224, 224)
        mask = torch.ones(2, 8).bool()
        assert model(video, mask=mask).shape == (2, 10)

    def test_one_number_as_image_size_means_a_square(self):
        assert make(image_size=8).config == make(image_size=(8, 8)).config

    def test_heads_times_dim_head_may_differ_from_dim(self):
        model = make(heads=5, dim_head=8)
        assert model.layers[0][0].fn.to_qkv.weight.shape == (3 * 5 * 8, 20)
        assert model(clips()).shape == (2, 4)

    @pytest.mark.parametrize("options", KINDS)
    def test_from_config_keeps_the_configuration(self, options):
        model = make(**options, attn_dropout=0.1, ff_dropout=0.2, channels=1)
        assert TimeSformer.from_config(model.config).config == model.config


@pytest.mark.usefixtures("no_grad")
class TestFunction:
    @pytest.mark.parametrize("options", KINDS)
    def test_logits_of_a_clip_are_independent_of_its_batch(self, options):
        model, video = make(**options).double(), clips(3).double()
        video[1:] *= 100
        mask = torch.tensor([[True, False, True], [True] * 3, [False] * 3])
        assert rel_l2(model(video)[:1], model(video[:1])) <= 1e-12
        assert rel_l2(model(video, mask)[:1], model(video[:1], mask[:1])) <= 1e-12

    @pytest.mark.parametrize("options", KINDS)
    def test_logits_depend_on_frame_order_and_patch_position(self, options):
        model, video = make(**options).double(), clips().double()
        assert rel_l2(model(video[:, [2, 0, 1]]), model(video)) > 1e-6
        assert rel_l2(model(video.roll(4, dims=-1)), model(video)) > 1e-6  # by one patch

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("options", KINDS)
    def test_logits_in_other_precisions_are_near_float64(self, options, dtype):
        model, mask = make(**options), torch.tensor([[True, False, True], [False] * 3])
        truth = copy.deepcopy(model).double()(clips().double(), mask)
        logits = model.to(dtype)(clips().to(dtype), mask)
        assert logits.dtype == dtype
        limit = {torch.float64: 0.0, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
        assert rel_l2(logits, truth) <= limit

    @pytest.mark.parametrize("options", KINDS)
    def test_forward_changes_neither_weights_nor_inputs(self, options):
        model, video = make(**options), clips()
        mask = torch.tensor([[True, False, True], [False] * 3])
        before = copy.deepcopy(model.state_dict()), video.clone(), mask.clone()
        assert torch.equal(model(video, mask), model(video, mask))
        assert all(torch.equal(before[0][name], t) for name, t in model.state_dict().items())
        assert torch.equal(video, before[1])
        assert torch.equal(mask, before[2])


@pytest.mark.usefixtures("no_grad")
class TestMask:
    @pytest.mark.parametrize("options", KINDS)
    def test_mask_of_all_frames_changes_nothing(self, options):
        model = make(**options).double()
        full = model(clips().double(), torch.ones(2, 3, dtype=torch.bool))
        assert rel_l2(full, model(clips().double())) <= 1e-12

    @pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "learned"])
    def test_masked_frame_does_not_change_the_logits(self, rotary):
        model, video = make(rotary_emb=rotary).double(), clips().double()
        mask = torch.tensor([[True, True, False]] * 2)
        other = video.clone()
        other[:, 2] = 7.0
        assert rel_l2(model(other, mask), model(video, mask)) <= 1e-12
        assert rel_l2(model(other), model(video)) > 1e-3

    def test_logits_with_all_frames_masked_are_independent_of_the_clip(self):
        model = make()
        nothing = torch.zeros(2, 3, dtype=torch.bool)
        assert torch.equal(model(clips(seed=1), nothing), model(clips(seed=2), nothing))

    def test_mask_with_large_attention_logits_gives_finite_outputs(self):
        model = make(dim_head=2)
        for layer in model.layers:
            for attention in (layer[0], layer[1]):
                attention.fn.to_qkv.weight *= 1e3
        out = model(clips(), torch.tensor([[False, True, False], [False] * 3]))
        assert torch.isfinite(out).all()

    @pytest.mark.parametrize(
        ("mask", "got"),
        [
            (torch.ones(2, 4, dtype=torch.bool), "(2, 4) of torch.bool"),
            (torch.ones(1, 3, dtype=torch.bool), "(1, 3) of torch.bool"),
            (torch.ones(3, dtype=torch.bool), "(3,) of torch.bool"),
            (torch.ones(2, 3, 1, dtype=torch.bool), "(2, 3, 1) of torch.bool"),
            (torch.ones(2, 3), "(2, 3) of torch.float32"),
        ],
        ids=str,
    )
    def test_error_of_a_wrong_mask_names_got_and_expected(self, mask, got):
        with pytest.raises(ValueError, match="mask has the wrong shape") as caught:
            make()(clips(), mask)
        assert got in str(caught.value)
        assert "(b, f) = (2, 3) of torch.bool" in str(caught.value)


class TestTokenShift:
    @pytest.mark.parametrize("dim", [3, 4, 5, 6, 7, 11])
    @pytest.mark.parametrize("frames", [1, 2, 4])
    def test_token_shift_moves_thirds_of_the_channels_by_one_frame(self, dim, frames):
        grid = Grid(frames, 2, 3)
        x = torch.randn(2, grid.tokens, dim)
        out = TokenShift(grid, dim, torch.nn.Identity())(x).unflatten(1, (frames, 6))
        x = x.unflatten(1, (frames, 6))
        third = dim // 3
        for frame in range(frames):
            for channel in range(dim):
                source = frame + {0: 1, 2: -1}.get(channel // third, 0)
                expected = torch.zeros(2, 6)
                if 0 <= source < frames:
                    expected = x[:, source, :, channel]
                assert torch.equal(out[:, frame, :, channel], expected)


class TestTraining:
    @pytest.mark.slow
    @pytest.mark.parametrize("options", KINDS)
    def test_loss_falls_and_every_parameter_gets_a_gradient(self, options):
        model = make(**options).train()
        video, target = clips(8), torch.arange(8) % 4
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        losses = []
        for _ in range(20):
            loss = torch.nn.functional.cross_entropy(model(video), target)
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None and p.grad.any() for p in model.parameters())
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]

    @pytest.mark.slow
    @pytest.mark.parametrize("rate", ["attn_dropout", "ff_dropout"])
    @pytest.mark.parametrize("options", KINDS)
    @torch.no_grad()
    def test_dropout_rate_acts_in_training_only(self, options, rate):
        model, without = make(**options, **{rate: 0.5}), make(**options)
        torch.manual_seed(3)
        assert rel_l2(model.train()(clips()), model(clips())) > 1e-3
        assert torch.equal(model.eval()(clips()), without(clips()))
        assert torch.equal(without.train()(clips()), without.eval()(clips()))


class TestRefusals:
    @pytest.mark.parametrize(
        "shape", [(2, 4, 3, 8, 12), (2, 3, 1, 8, 12), (2, 3, 3, 12, 8), (3, 3, 8, 12), (12,)]
    )
    def test_error_of_a_wrong_shape_names_got_and_expected(self, shape):
        with pytest.raises(ValueError, match="shape") as caught:
            make()(torch.zeros(shape))
        assert str(shape) in str(caught.value)
        assert "(3, 3, 8, 12)" in str(caught.value)

    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            ({"image_size": 10}, ["height", "multiple of patch_size 4", "got 10", "8 or 12"]),
            ({"image_size": (8, 10)}, ["width", "got 10"]),
            ({"image_size": (8, 8, 8)}, ["height", "got (8, 8, 8)"]),
            ({"image_size": "8"}, ["height", "got '8'"]),
            ({"num_frames": 0}, ["frames", "at least 1", "got 0"]),
            ({"heads": None}, ["heads", "whole number", "got None"]),
            ({"dim_head": 3}, ["even dim_head", "got 3"]),
            ({"dim": 2, "shift_tokens": True}, ["shift_tokens", "got 2"]),
            ({"attn_dropout": 1.0}, ["attn_dropout", "[0, 1)", "got 1.0"]),
            ({"ff_dropout": math.nan}, ["ff_dropout", "got nan"]),
        ],
        ids=str,
    )
    def test_error_of_an_invalid_configuration_names_got_and_expected(self, options, parts):
        with pytest.raises(ConfigError) as caught:
            make(**options)
        assert [part for part in parts if part not in str(caught.value)] == []
        assert "\n" not in str(caught.value)


def bare(**options: object) -> dict[str, Tensor]:
    """Return a state dict of names and tensors only, as the published package saves it."""
    return dict(make(**options).state_dict())


def save(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, folder / "m.pth")
    return folder / "m.pth"


def refusal(path: Path, **config: object) -> str:
    """Return the error message, which must be one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, config=config)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.usefixtures("no_grad")
class TestCheckpoints:
    @pytest.mark.parametrize("options", KINDS)
    def test_saved_model_loads_without_arguments(self, tmp_path, options):
        saved = make(**options, attn_dropout=0.1)
        saved.labels = ("a", "b", "c", "d")
        save_checkpoint(saved, tmp_path / "m.safetensors")
        loaded = load_checkpoint(tmp_path / "m.safetensors")
        assert isinstance(loaded, TimeSformer)
        assert loaded.config == saved.config
        assert loaded.labels == saved.labels
        assert torch.equal(loaded(clips()), saved(clips()))

    def test_own_state_dict_loads_without_arguments(self, tmp_path):
        torch.save(make().state_dict(), tmp_path / "m.pth")
        assert load_checkpoint(tmp_path / "m.pth").config == make().config

    @pytest.mark.slow
    @pytest.mark.parametrize("options", KINDS)
    @pytest.mark.parametrize("names", ["published", "ours"])
    def test_configuration_is_inferred_from_a_bare_state_dict(self, tmp_path, options, names):
        config = {"published": UNTOLD, "ours": {"frames": 3, "height": 8, "width": 12}}[names]
        path = save(tmp_path, bare(**options))
        loaded = load_checkpoint(path, config={**config, "dim_head": 6})
        assert loaded.config == make(**options).config
        assert torch.equal(loaded(clips()), make(**options)(clips()))

    def test_heads_are_inferred_from_a_rotary_file(self, tmp_path):
        loaded = load_checkpoint(save(tmp_path, bare()), config=UNTOLD)
        assert (loaded.config.heads, loaded.config.dim_head) == (2, 6)

    @pytest.mark.parametrize("given", [{"heads": 2}, {"dim_head": 6}], ids=str)
    def test_frames_and_heads_are_inferred_from_learned_positions(self, tmp_path, given):
        path = save(tmp_path, bare(rotary_emb=False))
        loaded = load_checkpoint(path, config={"image_size": (8, 12), **given})
        assert (loaded.config.frames, loaded.config.heads, loaded.config.dim_head) == (3, 2, 6)

    def test_learned_positions_without_heads_and_dim_head_are_refused(self, tmp_path):
        assert "does not tell dim_head" in refusal(save(tmp_path, bare(rotary_emb=False)), **UNTOLD)

    def test_rotary_file_without_the_clip_size_is_refused(self, tmp_path):
        message = refusal(save(tmp_path, bare()))
        assert "does not tell frames, height, width" in message

    @pytest.mark.parametrize(
        ("options", "changed", "parts"),
        [
            ({}, {"dim": 24}, ["dim is 20", "cls_token", "24"]),
            ({}, {"depth": 3}, ["depth is 2", "3"]),
            ({}, {"num_classes": 5}, ["num_classes is 4", "to_out.1.weight", "5"]),
            ({}, {"dim_head": 4}, ["dim_head is 6", "inv_freqs", "4"]),
            ({}, {"heads": 4}, ["heads is 2", "to_qkv", "4"]),
            ({}, {"rotary_emb": False}, ["rotary_emb is True", "False"]),
            ({}, {"shift_tokens": True}, ["shift_tokens is False", "having no layers.0", "True"]),
            ({"shift_tokens": True}, {"shift_tokens": False}, ["is True", "having layers.0"]),
            ({}, {"patch_size": 3}, ["patch_size"]),
            ({}, {"channels": 12, "patch_size": 4}, ["patch_size is 2", "4"]),
            ({"rotary_emb": False}, {"num_frames": 4, "heads": 2}, ["frames is 3", "pos_emb"]),
            ({"rotary_emb": False}, {"dim_head": 5}, ["12 channels", "dim_head 5"]),
            ({"rotary_emb": False}, {"dim_head": 6, "heads": 3}, ["heads is 2", "3"]),
            ({"rotary_emb": False}, {"image_size": 20, "heads": 2}, ["no whole number of frames"]),
            ({}, {"image_size": (8, 10)}, ["width", "got 10"]),
            ({}, {"image_size": (8, 8, 8)}, ["height", "got (8, 8, 8)"]),
            ({}, {"height": 12}, ["height is given twice"]),
            ({}, {"frames": 4}, ["frames is given twice"]),
            ({}, {"drop_path": 0.1}, ["unknown config entry", "drop_path"]),
            ({}, {"semantics": "paper"}, ["unknown config entry", "semantics"]),
        ],
        ids=str,
    )
    def test_error_of_a_contradiction_names_both_values(self, tmp_path, options, changed, parts):
        message = refusal(save(tmp_path, bare(**options)), **{**UNTOLD, **changed})
        assert [part for part in parts if part not in message] == []

    @pytest.mark.parametrize("other", [FastTimeSformer(3, 3, 8, 12, 4, dim=64, patch_size=4)])
    def test_mixed_keys_of_two_families_are_refused(self, tmp_path, other):
        message = refusal(save(tmp_path, {**bare(), **other.state_dict()}), **UNTOLD)
        assert "keys of " in message
        assert "timesformer_pytorch" in message
        assert "mixed" in message

    def test_additional_foreign_weights_are_refused(self, tmp_path):
        state = {**bare(), "blocks.0.mlp.norm.weight": torch.zeros(20)}
        message = refusal(save(tmp_path, state), **UNTOLD)
        assert "unknown weights: blocks.0.mlp.norm.weight" in message

    @pytest.mark.slow
    @pytest.mark.parametrize("options", KINDS)
    def test_any_missing_weight_is_refused(self, tmp_path, options):
        for name in bare(**options):
            state = bare(**options)
            del state[name]
            assert refusal(save(tmp_path, state), **UNTOLD, dim_head=6)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [name for name in bare() if not name.startswith("layers.1")])
    @pytest.mark.parametrize("shape", [(), (0,), (5,), (1, 2, 3)], ids=str)
    def test_any_wrong_shape_is_refused(self, tmp_path, name, shape):
        assert refusal(save(tmp_path, {**bare(), name: torch.zeros(shape)}), **UNTOLD)

    def test_family_recognises_its_keys_and_its_example_exists(self):
        assert TIMESFORMER_PYTORCH.example in bare()
        for state in (bare(), bare(shift_tokens=True)):
            assert any(re.fullmatch(TIMESFORMER_PYTORCH.anchor, key) for key in state)
            assert all(re.fullmatch(TIMESFORMER_PYTORCH.members, key) for key in state)
