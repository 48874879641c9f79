"""Test how a failure of a random model is told from a failure of its export."""

import numpy as np
import pytest
import torch

from exporter import ExportSpec
from exporter.results import InputParity, Parity
from model import FastTimeSformer
from model.precision import RoundedLinear

SPEC = ExportSpec(dim=32, dim_head=16, depth=1, frames=2, res=(32, 32), precision="bf16")


@pytest.fixture(scope="module")
def rounding(script):
    return script("random_rounding")


@pytest.fixture(scope="module")
def configurations(script):
    return script("configurations")


def row(error, **more):
    one = InputParity("natural", error, 0.0, 0.0, 1.0)
    return Parity("x", "cpu", "bf16", "fail", tolerance=0.05, per_input=(one,), **more)


def test_roundings_move_a_model_by_about_a_step(rounding):
    torch.manual_seed(0)
    model = FastTimeSformer(2, 3, 32, 32, num_classes=5, dim=32, dim_head=16, depth=1)
    moved = rounding.largest_moves(model.double().eval(), torch.randn(3, 2, 3, 32, 32), 2.0**-9)
    assert moved.shape == (3,)
    assert (moved > 2.0**-12).all()
    assert (moved < 2.0**-5).all()


def test_roundings_move_a_model_that_takes_another_branch(rounding):
    class Branch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.step = RoundedLinear(1, 1, bias=False).double()
            torch.nn.init.ones_(self.step.weight)

        def forward(self, x):
            return torch.where(self.step(x) > 1, 2.0, 1.0)

    moved = rounding.largest_moves(Branch(), torch.tensor([[1.0], [0.5]]), 2.0**-9)
    assert moved.tolist() == [1.0, 0.0]


def test_only_an_error_that_roundings_reach_on_its_input_is_explained(rounding, monkeypatch):
    for moves, expected in ((0.06, True), (0.04, False)):
        monkeypatch.setattr(rounding, "largest_moves", lambda *_, m=moves: torch.tensor([m]))
        assert rounding.explains(SPEC, row(0.1)) is expected
    assert not rounding.explains(SPEC, row(0.1, judged="structure"))
    assert not rounding.explains(SPEC, row(0.01))  # another reason than an error


def test_the_drawn_models_are_valid_and_of_every_kind(configurations):
    rng = np.random.default_rng(0)
    drawn = [
        configurations.draw(rng, configurations.FAMILIES[number % len(configurations.FAMILIES)])
        for number in range(150)
    ]
    for options in drawn:
        ExportSpec(**{name: value for name, value in options.items() if name != "scaled"})
    assert {options["precision"] for options in drawn} == {"fp32", "fp16", "bf16", "int8"}
    assert {options["num_classes"] for options in drawn} == {1, 2, 5, 51, 1000}
    assert sum("dynamic_batch" in options for options in drawn) > 20
    assert sum("scaled" in options for options in drawn) > 20
