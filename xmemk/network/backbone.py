"""The two image encoders' trunks: ResNets without their last stage, under the parameter names of the released files.

Batch normalisation always uses its stored statistics, as XMem does in training and inference alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """3 x 3, padded, with bias where no normalisation follows."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1)


def _plain(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a short cut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _plain(channels_in, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _plain(channels, channels, 3), nn.BatchNorm2d(channels)
        self.downsample = _short_cut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (which has the stride), 1 x 1 to four times the channels (ResNet-50)."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _plain(channels_in, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _plain(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _plain(channels, 4 * channels, 1), nn.BatchNorm2d(4 * channels)
        self.downsample = _short_cut(channels_in, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def _short_cut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(_plain(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))


def stage(
    block: type[BasicBlock] | type[Bottleneck], channels_in: int, channels: int, blocks: int, stride: int
) -> nn.Sequential:
    """``blocks`` blocks in a row, of which the first has the stride; their output has channels * expansion."""
    channels_out = channels * block.expansion
    first = block(channels_in, channels, stride)
    return nn.Sequential(first, *(block(channels_out, channels, 1) for _ in range(blocks - 1)))


class KeyTrunk(nn.Module):
    """Image [B, 3, H, W] -> f16 [B, 16 w, H/16, W/16], f8 [B, 8 w, ...], f4 [B, 4 w, ...]; ResNet-50 for w = 64."""

    def __init__(self, width: int, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width)
        self.res2 = stage(Bottleneck, width, width, blocks[0], 1)
        self.layer2 = stage(Bottleneck, 4 * width, 2 * width, blocks[1], 2)
        self.layer3 = stage(Bottleneck, 8 * width, 4 * width, blocks[2], 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.relu(self.bn1(self.conv1(image)))
        f4 = self.res2(nn.functional.max_pool2d(x, 3, stride=2, padding=1))
        f8 = self.layer2(f4)
        return self.layer3(f8), f8, f4
