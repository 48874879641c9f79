"""Compare merged LoRA adapters with `merge_and_unload` of the peft package, on random models."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")
import peft
from transformers import TimesformerConfig, TimesformerForVideoClassification

from model import load_checkpoint

# The warnings are those of peft and transformers: the one of `fan_in_fan_out` is expected.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SIZES = {
    "image_size": 16, "patch_size": 8, "num_frames": 2, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3,
}  # fmt: skip
KINDS = {
    "plain": {"r": 4, "lora_alpha": 16},
    "rank-stabilised": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "a rank of its own": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layer.1.attention.attention.qkv": 2},
        "alpha_pattern": {"temporal_dense": 20},
    },
    "a new classifier": {"r": 2, "lora_alpha": 3, "modules_to_save": ["classifier"]},
    "a convolution": {"r": 3, "lora_alpha": 5, "target_modules": ["projection", "qkv"]},
    "trained biases": {"r": 2, "lora_alpha": 3, "bias": "all"},
    "biases of the adapter": {"r": 2, "lora_alpha": 3, "lora_bias": True},
    "all linear maps": {"r": 2, "target_modules": "all-linear", "lora_alpha": 7},
}
TARGETS = ["qkv", "temporal_dense", "intermediate.dense"]


def make(path: Path, seed: int = 0) -> TimesformerForVideoClassification:
    torch.manual_seed(seed)
    model = TimesformerForVideoClassification(TimesformerConfig(**SIZES))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.2
    model.eval().save_pretrained(path)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transposed", [False, True], ids=["", "fan_in_fan_out"])
def test_merged_logits_equal_those_of_peft(tmp_path, kind, transposed):
    base = make(tmp_path / "base")
    config = peft.LoraConfig(**{"target_modules": TARGETS, **KINDS[kind]})
    adapted = peft.get_peft_model(base, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name or parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape) * 0.3
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    entries = json.loads(file.read_text())
    entries |= {"base_model_name_or_path": str(tmp_path / "base"), "fan_in_fan_out": transposed}
    file.write_text(json.dumps(entries))

    again = peft.PeftModel.from_pretrained(
        TimesformerForVideoClassification.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    truth = again.merge_and_unload().double().eval()
    ours = load_checkpoint(tmp_path / "adapter").double()
    video = torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected, got = truth(video).logits, ours(video)
        unchanged = load_checkpoint(tmp_path / "base").double()(video)
    assert ((got - expected).norm() / expected.norm()).item() < 1e-6
    assert ((unchanged - expected).norm() / expected.norm()).item() > 1e-2
