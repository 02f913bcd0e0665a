"""What the tests of kernels share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every test."""
    torch.manual_seed(1309)
