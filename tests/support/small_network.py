"""A network of a few thousand parameters, whose frames take milliseconds."""

from __future__ import annotations

import fixed_network as fixed
import torch
from torch import Tensor

from xmemk.network import NetworkConfig, XMem

CONFIG = NetworkConfig(
    key_dim=8,
    value_dim=16,
    hidden_dim=4,
    width=4,
    key_blocks=(1, 1, 1),
    value_blocks=(1, 1, 1),
    decoder_dim=8,
)
IMAGES = torch.rand(8, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def small_network() -> XMem:
    """Always the same numbers."""
    torch.manual_seed(0)
    network = XMem(CONFIG)
    network.load_state_dict(fixed.fixed_weights(network.state_dict()))
    return network


def labels(*objects: int) -> Tensor:
    """A mask [32, 48] in which each object has a bar of its own."""
    mask = torch.zeros(32, 48, dtype=torch.int64)
    for i, label in enumerate(objects):
        mask[2 + 4 * i : 6 + 4 * i, 8:40] = label
    return mask
