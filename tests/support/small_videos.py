"""A small network and its videos for tests of whole videos; their fixtures are in tests/video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import fixed_network as fixed
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xmemk import MemoryConfig
from xmemk.network import NetworkConfig

SMALL = NetworkConfig(key_dim=8, value_dim=16, hidden_dim=4, width=4, key_blocks=(1, 1, 1), decoder_dim=8)
CONFIG = MemoryConfig(
    hidden_dim=4, mem_every=2, max_mid_term_frames=4, min_mid_term_frames=2, num_prototypes=4, max_long_term_elements=12
)
COUNT = 21


def pictures(count: int = COUNT) -> list[Tensor]:
    """Frames [H, W, 3] uint8."""
    return [(frame * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous() for frame in fixed.frames()[:count]]


def results(out: Path, folder: str = "masks") -> dict[str, Tensor]:
    return {p.name: torch.from_numpy(np.array(Image.open(p))) for p in sorted((out / folder).iterdir())}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def write_video(
    path: Path,
    count: int = COUNT,
    form: str = "mp4",
    codec: str = "libx264",
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """The pictures as a video of 25 frames a second, with a key frame every five."""
    import av

    with av.open(str(path), "w", format=form, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(25), options={"g": "5", **options})
        stream.width, stream.height = fixed.WIDTH, fixed.HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for picture in pictures(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy(), "rgb24")))
        container.mux(stream.encode(None))
    return path
