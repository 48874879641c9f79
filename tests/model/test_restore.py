"""Test that weights which a wrapper stores in parts are restored under the names of the model."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from model.config import ConfigError
from model.weights.file import WeightsFile
from model.weights.restore import restore


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 5)


def restored(module: nn.Module) -> dict:
    return dict(restore(WeightsFile(module.state_dict())).state)


def test_a_pruned_weight_is_the_product_with_its_mask():
    pruned = prune.l1_unstructured(layer(), "weight", amount=0.5)
    state = restored(pruned)
    assert torch.equal(state["weight"], pruned.weight)
    assert (state["weight"] == 0).sum() == 8
    assert state.keys() == layer().state_dict().keys()


@pytest.mark.parametrize("dim", [0, 1])
def test_weight_norm_is_computed_from_direction_and_length(dim):
    normed = parametrizations.weight_norm(layer(), dim=dim)
    parts = normed.parametrizations.weight
    with torch.no_grad():
        parts.original0.mul_(torch.rand_like(parts.original0) + 1)
    state = restored(normed)
    torch.testing.assert_close(state["weight"], normed.weight.detach())
    assert state.keys() == layer().state_dict().keys()


def test_the_old_names_of_weight_norm_are_read():
    v, g = torch.randn(5, 3), torch.rand(5, 1)
    file = restore(WeightsFile({"head.weight_g": g, "head.weight_v": v}))
    torch.testing.assert_close(file.state["head.weight"], torch.nn.functional.normalize(v) * g)
    assert file.notes == ("weights of weight norm computed from their parts: 1",)


@pytest.mark.parametrize(
    "module",
    [parametrizations.orthogonal(layer()), parametrizations.spectral_norm(layer())],
    ids=["orthogonal", "spectral"],
)
def test_parts_of_another_kind_are_refused_with_the_remedy(module):
    with pytest.raises(ConfigError, match=r"parametrizations\.weight.*remove_parametrizations"):
        restored(module)


def test_a_trained_module_of_peft_takes_the_place_of_the_original_one():
    state = {
        "a.classifier.original_module.weight": torch.zeros(2),
        "a.classifier.modules_to_save.default.weight": torch.ones(2),
    }
    file = restore(WeightsFile(state))
    assert {name: tensor.tolist() for name, tensor in file.state.items()} == {
        "a.classifier.weight": [1.0, 1.0]
    }


def test_the_trained_modules_of_two_adapters_stay_apart():
    state = {f"classifier.modules_to_save.{name}.weight": torch.ones(2) for name in ("one", "two")}
    file = restore(WeightsFile(state))
    assert file.state.keys() == state.keys()
    assert file.notes == ()


def test_counters_of_a_profiler_are_no_weights():
    assert restore(WeightsFile({"a.total_ops": torch.zeros(1), "a.w": torch.zeros(1)})).state == {
        "a.w": torch.zeros(1)
    }
