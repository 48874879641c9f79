"""Test which numbers of a graph are those of its model."""

import math

import pytest
import torch

from exporter.proof.numbers import Numbers, numbers_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_number_is_known_in_each_type_of_a_graph(dtype):
    known = Numbers([0.1])
    assert torch.tensor(0.1, dtype=dtype).item() in known
    assert torch.tensor(0.11, dtype=dtype).item() not in known


def test_a_graph_may_write_gelu_as_its_equation():
    for number in (0.5, math.sqrt(0.5), 0.044715):
        assert torch.tensor(number).item() in Numbers([])


def test_a_graph_may_write_the_zero_of_a_padding():
    assert 0.0 in Numbers([0.1])


def test_the_numbers_of_a_step_are_no_sizes():
    given = [2, 0.5, torch.tensor([[3.0]]), torch.ones(2), torch.tensor(4), "n", None]
    assert [*numbers_of("reshape", given)] == [0.5, 3.0]
    for name in ("mul", "__truediv__", "__rsub__"):
        assert [*numbers_of(name, given)] == [2.0, 0.5, 3.0]
