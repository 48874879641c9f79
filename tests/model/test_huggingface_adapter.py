"""Test LoRA adapters: the merged weights, and one-line errors. `tests/parity` asks peft itself."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model import CheckpointError, load_checkpoint
from model.config import ConfigError
from model.families.huggingface_adapter import Adapter, merge_adapter, read_adapter

LAYER = "timesformer.encoder.layer.0.attention.attention.qkv"
PATCH = "timesformer.embeddings.patch_embeddings.projection"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "some/base"}


def base() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        f"{LAYER}.weight": torch.randn(12, 4),
        f"{LAYER}.bias": torch.randn(12),
        f"{PATCH}.weight": torch.randn(4, 3, 2, 2),
        "classifier.weight": torch.randn(3, 4),
    }


def lora(module: str = LAYER, rank: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, 4),
        f"{module}.lora_B.weight": torch.randn(12, rank),
    }


def sides(*shapes: tuple[int, ...]) -> dict[str, Tensor]:
    names = ("lora_A.weight", "lora_B.weight", "lora_B.bias")
    return {f"{LAYER}.{name}": torch.ones(s) for name, s in zip(names, shapes, strict=False)}


def write(path: Path, state: dict[str, Tensor], **config: object) -> Path:
    entries = {**CONFIG, **config}
    (path / "adapter_config.json").write_text(json.dumps(entries))
    named = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    save_file(named, path / "adapter_model.safetensors")
    return path


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 6 / 2),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"layer.0.attention.attention.qkv": 5}}, 5 / 2),
        ({"r": 8, "rank_pattern": {"qkv": 2}}, 6 / 2),
        ({"fan_in_fan_out": True}, 6 / 2),
    ],
)
def test_a_linear_map_gets_its_scaled_product(tmp_path, config, scale):
    adapter = read_adapter(write(tmp_path, lora(), **config))
    merged = merge_adapter(adapter, base())
    product = lora()[f"{LAYER}.lora_B.weight"] @ lora()[f"{LAYER}.lora_A.weight"]
    expected = base()[f"{LAYER}.weight"] + scale * product
    torch.testing.assert_close(merged[f"{LAYER}.weight"], expected)
    assert torch.equal(merged[f"{LAYER}.bias"], base()[f"{LAYER}.bias"])


def test_a_convolution_gets_the_product_of_its_channels():
    down, up = torch.randn(2, 3, 2, 2), torch.randn(4, 2, 1, 1)
    state = {f"{PATCH}.lora_A.weight": down, f"{PATCH}.lora_B.weight": up}
    merged = merge_adapter(Adapter(CONFIG, state), base())
    delta = torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
    torch.testing.assert_close(merged[f"{PATCH}.weight"], base()[f"{PATCH}.weight"] + 3 * delta)


def test_whole_weights_of_the_adapter_replace_those_of_the_base():
    new = {
        "classifier.modules_to_save.default.weight": torch.ones(7, 4),
        f"{LAYER}.bias": torch.ones(12),
    }
    merged = merge_adapter(Adapter(CONFIG, new), base())
    assert merged["classifier.weight"].shape == (7, 4)
    assert torch.equal(merged[f"{LAYER}.bias"], torch.ones(12))


def test_names_of_a_bare_base_are_found():
    bare = {name.removeprefix("timesformer."): tensor for name, tensor in base().items()}
    merged = merge_adapter(Adapter(CONFIG, lora()), bare)
    name = f"{LAYER.removeprefix('timesformer.')}.weight"
    assert not torch.equal(merged[name], bare[name])
    assert merged.keys() == bare.keys()


@pytest.mark.parametrize(
    ("state", "config", "parts"),
    [
        (lora(rank=3), {}, ["rank 3 by its weights", "rank 2"]),
        (lora("timesformer.other"), {}, ["does not fit its base model", "other.weight"]),
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 4)}, {}, ["lacks lora_A or lora_B", LAYER]),
        ({f"{LAYER}.lora_magnitude_vector.weight": torch.ones(2)}, {}, ["merge_and_unload"]),
        ({**lora(), f"{LAYER}.lora_A.weight": torch.ones(2, 5)}, {}, ["(12, 5)", "(12, 4)"]),
        (lora(), {"use_dora": True}, ["use_dora", "merge_and_unload"]),
        (lora(), {"init_lora_weights": "pissa"}, ["changes the base model", "merge_and_unload"]),
        (lora(), {"target_parameters": ["a"]}, ["target_parameters", "merge_and_unload"]),
        (lora(), {"peft_type": "IA3"}, ["peft_type 'IA3'", "merge_and_unload"]),
        (lora(), {"rank_pattern": ["qkv"]}, ["rank_pattern", "regular expressions", "['qkv']"]),
        (lora(), {"alpha_pattern": {"(": 4}}, ["alpha_pattern", "regular expressions", "{'(': 4}"]),
        (sides((3, 4), (12, 2)), {}, ["no product", LAYER, "(3, 4) and (12, 2)"]),
        (sides((), (12, 2)), {}, ["no product", "() and (12, 2)"]),
        (sides((2, 4), (12,)), {}, ["no product", "(2, 4) and (12,)"]),
        (sides((0, 4), (12, 0)), {"r": 0}, ["no product", "(0, 4) and (12, 0)"]),
        (sides((2, 4), (12, 2), (5,)), {}, ["lora_B.bias", "(5,)", "(12,)"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, state, config, parts):
    with pytest.raises(ConfigError) as caught:
        merge_adapter(read_adapter(write(tmp_path, state, **config)), base())
    assert [part for part in parts if part not in str(caught.value)] == []


def test_an_adapter_without_its_base_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter of some/base.*base_model"):
        load_checkpoint(write(tmp_path, lora()))


def test_an_adapter_of_an_adapter_is_refused(tmp_path):
    for name, other in (("one", "two"), ("two", "one")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, lora(), base_model_name_or_path=str(tmp_path / other))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "one")
    assert f"is an adapter of {tmp_path / 'two'}, which is an adapter itself" in str(caught.value)
    assert "merge_and_unload" in str(caught.value)


def test_an_adapter_without_weights_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"no adapter_model.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("zero_to_fp32.py", "python zero_to_fp32.py"),
        ("model.safetensors", "give .*model.safetensors"),
        ("checkpoint-500/config.json", "give .*checkpoint-500"),
        ("mine/adapter_config.json", "give .*mine"),
        ("best.pth", "give .*best.pth"),
        ("global_step10/mp_rank_00_model_states.pt", "give .*mp_rank_00_model_states.pt"),
    ],
)
def test_a_directory_without_a_configuration_is_refused_with_what_to_give(tmp_path, name, remedy):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=remedy):
        load_checkpoint(tmp_path)


def test_of_a_directory_of_training_the_weights_are_named_and_not_its_state(tmp_path):
    for name in ("optimizer.bin", "rng_state.pth", "zero_pp_rank_0_optim_states.pt", "last.pt"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert str(caught.value).endswith(f"without config.json; give {tmp_path / 'last.pt'}")


def test_a_distributed_checkpoint_is_refused_with_its_converter(tmp_path):
    (tmp_path / ".metadata").touch()
    with pytest.raises(CheckpointError, match="convert it: python -m torch"):
        load_checkpoint(tmp_path)
