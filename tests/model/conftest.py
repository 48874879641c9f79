"""Fixtures of the model's tests."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture
def no_grad() -> Iterator[None]:
    """The test computes without gradients."""
    with torch.no_grad():
        yield
