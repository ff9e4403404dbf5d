"""What stands in for trained weights: memory features of the bundled clip, played back and forth,
random features of a network's statistics, and random weights that behave as trained ones.

The demo's descriptors (:mod:`xmemk.demo.features`, 12 channels) are spread over XMem's 64 such that
Eq. 2 gives the same similarity; the values are the colours of a cell's pixels, repeated to 512
channels. What is kept of a video, and how long a read takes, depends on how alike its frames are,
but not on what the numbers mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xmemk.data import BUNNY

KEY_CHANNELS, VALUE_CHANNELS = 64, 512
FRAMES = 132  # of the clip
START = 40  # its annotated frame


class ClipFeatures:
    """Frames of ``height`` x ``width`` tokens, one object, from ``count`` frames of the clip."""

    def __init__(self, height: int, width: int, count: int = FRAMES) -> None:
        from xmemk.data.video import read_frames
        from xmemk.demo.features import CELL, describe

        self.height, self.width = height, width
        self._keys, self._selections, self._values = [], [], []
        for image in itertools.islice(read_frames(BUNNY / "clip.mp4", (width * CELL, height * CELL)), count):
            key, selection = describe(image, (height, width))
            pixels = image.permute(2, 0, 1)[None].float() / 255
            self._keys.append(key)
            self._selections.append(selection)
            self._values.append(F.pixel_unshuffle(pixels, CELL).half())  # [1, 3 * 64, h, w]; there are many
        self.count = len(self._keys)
        channels = self._keys[0].shape[1]
        self._spread = torch.arange(KEY_CHANNELS) % channels
        copies = self._spread.bincount()[self._spread]
        self._scale = ((KEY_CHANNELS / channels) ** 0.25 / copies.sqrt()).view(1, -1, 1, 1)
        self._repeat = torch.arange(VALUE_CHANNELS) % self._values[0].shape[1]

    def query(self, t: int) -> tuple[Tensor, Tensor]:
        """Key and selection [1, 64, h, w] of frame t of the endless film."""
        i = there_and_back(t, self.count)
        return self._keys[i][:, self._spread] * self._scale, self._selections[i][:, self._spread]

    def remembered(self, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frame t for a memory: key, shrinkage [1, 1, h, w], value [1, 1, 512, h, w], selection."""
        key, selection = self.query(t)
        shrinkage = 1 + 0.5 * self._selections[there_and_back(t, self.count)][:, -1:]
        value = self._values[there_and_back(t, self.count)][:, self._repeat].float()
        return key, shrinkage, value[:, None], selection


def there_and_back(t: int, count: int) -> int:
    """The frame shown at time t: 0, 1, ..., count - 1, count - 2, ..., 1, 0, 1, ..."""
    if count == 1:
        return 0
    place = t % (2 * count - 2)
    return min(place, 2 * count - 2 - place)


def checkpoints(last: int, first: int = 100) -> Iterator[int]:
    """1, 2, 5, 10, ... times ``first``, and ``last``."""
    step = 0
    while (point := first * (1, 2, 5)[step % 3] * 10 ** (step // 3)) < last:
        yield point
        step += 1
    yield last


def features(h: int, w: int, objects: int, channels: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A slow scene: key, shrinkage, selection [1, C, h, w], value [1, O, CV, h, w]."""
    g = torch.Generator().manual_seed(0)
    scene = torch.randn(1, 64, h, w, generator=g)
    while True:
        key = scene + 0.3 * torch.randn(1, 64, h, w, generator=g)
        shrinkage = 1 + 9 * torch.rand(1, 1, h, w, generator=g) ** 2
        yield key, shrinkage, torch.rand(1, 64, h, w, generator=g), torch.randn(1, objects, channels, h, w, generator=g)


def calibrate(network: Any, image: Tensor) -> None:
    """Keys and shrinkage of a trained network's size: beyond it, the host's softmax yields NaN."""
    with torch.no_grad():
        for _ in range(2):
            key, shrinkage, *_ = network.encode_key((image - 0.5)[None] / 0.25)
            network.key_proj.key_proj.weight /= key.std()
            network.key_proj.key_proj.bias /= key.std()
            network.key_proj.d_proj.weight /= (shrinkage - 1).sqrt().std()


def randomise(network: Any, keys: float = 1.0) -> None:
    """Weights that keep signals of one size through all layers, normalisations whose statistics are
    not 0 and 1, and keys that are ``keys`` times as large."""
    g = torch.Generator().manual_seed(0)
    for name, x in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(x.shape, generator=g)
        if name.endswith("running_var"):
            x.copy_(0.5 + torch.rand(x.shape, generator=g))
        elif x.dim() > 1:
            x.copy_(noise / math.sqrt(x[0].numel()))
        else:
            x.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
        if "key_proj.key_proj." in name:
            x *= keys


class Frame(NamedTuple):
    """picture [3, H, W] in 0 to 1. mask: labels [H, W] of the objects that join. labels: so far."""

    picture: Tensor
    mask: Tensor | None
    labels: int
    first: bool
    last: bool


def clip_frames(lines: int, frames: int, objects: int, late: list[int]) -> Iterator[Frame]:
    """The clip from its annotated frame on, back and forth; its mask in strips, and late boxes."""
    from xmemk.data.masks import read_mask
    from xmemk.data.video import read_frames

    columns = 2 * round(lines * 1280 / 720 / 2)
    clip = list(itertools.islice(read_frames(BUNNY / "clip.mp4", (columns, lines), START), frames))
    bunny = F.interpolate(read_mask(BUNNY / f"{START:05}.png")[None, None].float(), (lines, columns))[0, 0] > 0
    across = bunny.any(0).nonzero()
    left, right = int(across[0]), int(across[-1]) + 1
    strips = (torch.arange(columns) - left).clamp(0, right - left - 1) * objects // (right - left) + 1
    masks = {0: torch.where(bunny, strips, 0)}
    for i, t in enumerate(late):
        top, start = (lines // 8) * (1 + 2 * (i % 3)), (columns // 10) * (1 + 3 * (i % 3))
        masks[t] = torch.zeros(lines, columns, dtype=torch.int64)
        masks[t][top : top + lines // 5, start : start + columns // 6] = objects + 1 + i
    for t in range(frames):
        picture = clip[there_and_back(t, len(clip))].permute(2, 0, 1).float() / 255
        yield Frame(picture, masks.get(t), objects + sum(i <= t for i in late), t == 0, t == frames - 1)
