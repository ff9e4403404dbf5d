"""Gradients through the read: two layers learn which memory tokens to compare, and what to read
from them.

A picture is remembered with its mask; a shifted, noisy copy asks the memory for its own mask.
Run: python examples/train.py
"""

import torch
from torch import nn

import xmemk

torch.manual_seed(0)
SIDE, CHANNELS = 16, 8
key_layer = nn.Conv2d(3, CHANNELS, 3, padding=1)
selection_layer = nn.Conv2d(3, CHANNELS, 3, padding=1)
optimizer = torch.optim.Adam([*key_layer.parameters(), *selection_layer.parameters()], lr=0.02)


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A picture with a coloured square and its mask; both moved, the picture with noise."""
    row, column = torch.randint(2, 8, (2,)).tolist()
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., row : row + 6, column : column + 6] = 1
    picture = 0.3 * torch.rand(1, 3, SIDE, SIDE) + mask * torch.tensor([0.6, 0.1, -0.2]).view(1, 3, 1, 1)
    moved = torch.roll(picture, (2, 1), (2, 3)) + 0.15 * torch.randn(1, 3, SIDE, SIDE)
    return picture, mask, moved, torch.roll(mask, (2, 1), (2, 3))


losses = []
for _ in range(60):
    picture, mask, moved, wanted = example()
    mk, qk = key_layer(picture).flatten(2), key_layer(moved).flatten(2)
    qe = selection_layer(moved).sigmoid().flatten(2)
    readout = xmemk.memory_read(mk, None, mask.flatten(2)[:, None], qk, qe, top_k=16)  # [1, 1, 1, SIDE * SIDE]
    loss = nn.functional.binary_cross_entropy(readout.clamp(1e-4, 1 - 1e-4).flatten(), wanted.flatten())
    optimizer.zero_grad()
    loss.backward()  # holds no N x Q matrix either
    optimizer.step()
    losses.append(float(loss))

first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
print(f"loss: {first:.3f} over the first ten steps, {last:.3f} over the last ten")
