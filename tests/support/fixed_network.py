"""Weights and frames that need no file: the same numbers on every machine."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

HEIGHT, WIDTH, FRAMES, LATE = 48, 60, 60, 22
MEMORY = {
    "top_k": 8,
    "mem_every": 3,
    "deep_update_every": -1,
    "enable_long_term": True,
    "enable_long_term_count_usage": True,
    "max_mid_term_frames": 5,
    "min_mid_term_frames": 3,
    "num_prototypes": 8,
    "max_long_term_elements": 400,
    "hidden_dim": 64,
}


def fixed_weights(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters from their names and shapes alone, of a size that keeps signals in bounds."""
    state = {}
    for name, like in shapes.items():
        g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros_like(like)
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(like.shape, generator=g)
        elif like.dim() > 1:
            state[name] = torch.randn(like.shape, generator=g) / math.sqrt(like[0].numel())
        elif name.endswith("weight"):
            state[name] = 1 + 0.1 * torch.randn(like.shape, generator=g)
        else:
            state[name] = 0.1 * torch.randn(like.shape, generator=g)
    return state


def stage_inputs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    return {
        "image": torch.randn(1, 3, 48, 64, generator=g),
        "masks": torch.rand(1, 3, 48, 64, generator=g),
        "hidden": torch.randn(1, 3, 64, 3, 4, generator=g),
        "readout": torch.randn(1, 3, 512, 3, 4, generator=g),
    }


def frames() -> list[Tensor]:
    """RGB [3, H, W] in 0 to 1: a smooth picture that drifts, with noise."""
    g = torch.Generator().manual_seed(6)
    picture = torch.rand(1, 3, HEIGHT + 40, WIDTH + FRAMES + 8, generator=g)
    picture = torch.nn.functional.avg_pool2d(picture, 7, 1)[0]
    picture = (picture - picture.amin()) / (picture.amax() - picture.amin())
    frames = []
    for t in range(FRAMES):
        frame = picture[:, t // 3 : t // 3 + HEIGHT, t : t + WIDTH] + 0.02 * torch.randn(3, HEIGHT, WIDTH, generator=g)
        frames.append(frame.clamp(0, 1))
    return frames


def first_mask() -> Tensor:
    """[H, W] with objects 1 and 2."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    mask[8:30, 6:26] = 1
    mask[20:40, 30:50] = 2
    return mask


def late_mask() -> Tensor:
    """[H, W] with object 3 alone, of frame LATE."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    mask[4:16, 40:56] = 3
    return mask


def thinned(name: str, x: Tensor) -> Tensor:
    """The part of a result that is stored, so that the file stays small."""
    if name == "frame":
        return x[:, ::4, ::4]
    if name == "probability":
        return x[..., ::2, ::2]
    return x[:, ::8] if name in ("f16", "f8", "f4") else x[:, :, ::8] if name in ("value", "one") else x
