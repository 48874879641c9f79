"""Fixtures of the model's tests."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it gives


@pytest.fixture
def no_grad() -> Iterator[None]:
    """The test computes without gradients."""
    with torch.no_grad():
        yield
