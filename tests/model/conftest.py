"""Fixtures of the model's tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def no_grad() -> Iterator[None]:
    """The test computes without gradients."""
    with torch.no_grad():
        yield
