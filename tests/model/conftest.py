"""Fixtures of the model's tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Disable gradients during the test."""
    with torch.no_grad():
        yield
