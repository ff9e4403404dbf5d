"""The trunks of the two image encoders: ResNets without their last stage.

Parameter names are those of the released files. Batch normalisation always uses its stored
statistics, as XMem does in training and inference alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A padded 3 x 3 convolution with bias, for places where no normalisation follows."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1)


def _plain(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _plain(channels_in, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _plain(channels, channels, 3), nn.BatchNorm2d(channels)
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut (ResNet-50): 1 x 1, strided 3 x 3, widening 1 x 1."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _plain(channels_in, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _plain(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _plain(channels, 4 * channels, 1), nn.BatchNorm2d(4 * channels)
        self.downsample = _shortcut(channels_in, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(_plain(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))


def stage(
    block: type[BasicBlock] | type[Bottleneck], channels_in: int, channels: int, blocks: int, stride: int
) -> nn.Sequential:
    """``blocks`` residual blocks; the first has the stride. Output: channels * expansion."""
    channels_out = channels * block.expansion
    first = block(channels_in, channels, stride)
    return nn.Sequential(first, *(block(channels_out, channels, 1) for _ in range(blocks - 1)))


class KeyTrunk(nn.Module):
    """The key encoder's trunk; with ``width`` w = 64 and blocks (3, 4, 6) it is ResNet-50.

    Image [B, 3, H, W] -> features at 1/16, 1/8 and 1/4 of its size:
    f16 [B, 16 w, H/16, W/16], f8 [B, 8 w, H/8, W/8], f4 [B, 4 w, H/4, W/4].
    """

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
