"""A network of the released sizes for all tests: ``pytest_plugins = ("full_network",)``."""

import fixed_network as fixed
import pytest
import torch

import xmemk


@pytest.fixture(scope="session")
def full_network() -> xmemk.XMem:
    """62 million fixed parameters, of which no test may change one."""
    with torch.device("meta"):
        network = xmemk.XMem()
    network.load_state_dict(fixed.fixed_weights(network.state_dict()), strict=True, assign=True)
    return network
