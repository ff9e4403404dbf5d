"""Whole frames and whole videos: the network and its memory together, with ours, the original's and
STCN's memory.

    python benchmarks/run.py --op frame memory_frame video [--network small full] [--save FILE]

frame: one image through key encoder, memory read and decoder, with full memory (T_max - 1 frames,
some 10,000 long-term tokens), at 480p by default. memory_frame: the same, and the frame is
remembered. Working memory has T_min to T_max - 1 frames, so that nothing is consolidated (an op of
its own). video: the bundled clip from its annotated frame on, 60 frames, at a height of 240 by
default. Random weights, one object; between the peers only the memory differs.

A result is right where its probabilities are within 1e-3 of those with the original's memory. STCN
is another method: its call returns None, which is not checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from xmemk.benchmarks.peers.catalogue import Call, Peer
from xmemk.benchmarks.peers.clip import START, calibrate, features
from xmemk.benchmarks.peers.memories import METHODS, hurry
from xmemk.benchmarks.peers.workloads import FRAME_OPS

import xmemk
from xmemk.data import BUNNY
from xmemk.network import NetworkConfig
from xmemk.reference import MemoryConfig
from xmemk.testing import Comparison
from xmemk.video.tracker import STRIDE, Tracker

NETWORKS = {
    "small": NetworkConfig(value_dim=128, width=16, key_blocks=(1, 1, 1), value_blocks=(1, 1, 1), decoder_dim=32),
    "full": NetworkConfig(),
}
ALLOWED = 1e-3  # of a probability
STCN_FRAMES = 50  # in its memory for "frame", the most that the paper gives it on long videos


@dataclass(frozen=True)
class VideoCase:
    """One op on one network. images: uint8 [3, H, W]; mask: labels [H, W] of the first."""

    op: str
    network_name: str
    network: xmemk.XMem
    images: list[Tensor]
    mask: Tensor
    config: MemoryConfig
    memo: dict[str, Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.mask.device

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a frame: h, w."""
        height, width = self.mask.shape
        return -(-height // STRIDE), -(-width // STRIDE)

    def expected(self) -> Tensor:
        """The probabilities with the original's memory, computed once."""
        if "original" not in self.memo:
            next(peer for peer in VIDEO_PEERS if peer.name == "original").prepare(self)()
        return self.memo["original"]


def make_video_case(
    op: str,
    network: str = "small",
    *,
    height: int | None = None,
    frames: int = 60,
    config: MemoryConfig | None = None,
    device: torch.device | str = "cpu",
) -> VideoCase:
    """The same images, mask and weights for every peer.

    ValueError for an op or a network that there is not.
    """
    from xmemk.data.masks import read_mask
    from xmemk.data.video import read_frames

    if op not in FRAME_OPS or network not in NETWORKS:
        raise ValueError(f"op, network: wanted one of {FRAME_OPS} and of {tuple(NETWORKS)}, got {op!r} and {network!r}")
    height = height or (240 if op == "video" else 480)
    labels = read_mask(BUNNY / f"{START:05}.png")
    width = round(height * labels.shape[1] / labels.shape[0])
    shown = itertools.islice(read_frames(BUNNY / "clip.mp4", (width, height), START), frames if op == "video" else 1)
    images = [image.permute(2, 0, 1).contiguous().to(device) for image in shown]
    torch.manual_seed(0)
    net = xmemk.XMem(NETWORKS[network]).to(device)
    whole = images[0][:, : height // STRIDE * STRIDE, : width // STRIDE * STRIDE]
    calibrate(net, whole.float() / 255)  # as if trained; beyond it the original's softmax gives NaN
    mask = F.interpolate(labels[None, None], (height, width))[0, 0].to(device)
    # The bookkeeping of one group of objects is the same in both; ties of an eviction are the
    # original's.
    config = config or MemoryConfig(hidden_dim=net.config.hidden_dim, groups="xmem")
    return VideoCase(op, network, net, images, mask, config)


def filled(case: VideoCase, name: str) -> Any:
    """A memory in mid-video, of synthetic features: long-term memory all but full."""
    method, config, (h, w) = METHODS[name], case.config, case.grid
    memory: Any = method.make(config)
    hurry(memory, True)
    working = config.max_mid_term_frames - 1 if case.op == "frame" else config.min_mid_term_frames
    consolidations = (config.max_long_term_elements - config.num_prototypes) // config.num_prototypes + 1
    for added, made in enumerate(features(h, w, 1, case.network.config.value_dim)):
        if method.bounded and added:
            if memory.consolidations == consolidations and memory.working_size == working * h * w:
                break
        elif added == STCN_FRAMES:
            break
        key, shrinkage, selection, value = (x.to(case.device) for x in made)
        if added == 0:
            memory.sensory.create([1], key)
        elif method.bounded and memory.working_size == (config.max_mid_term_frames - 1) * h * w:
            memory.read(key, selection)  # which gives the candidates their usage
        memory.add(key, shrinkage, value, [1], selection if memory.config.enable_long_term else None)
    hurry(memory, False)
    return memory


def _peer(name: str) -> Peer:
    def prepare(case: VideoCase) -> Call:
        run = _video(case, name) if case.op == "video" else _frame(case, name)

        def call() -> Tensor | None:
            probabilities = run()
            if name == "original":
                case.memo.setdefault("original", probabilities)
            return None if name == "STCN" else probabilities

        return call

    return Peer(f"{name} (another method)" if name == "STCN" else name, prepare, ours=METHODS[name].ours)


VIDEO_PEERS = [_peer(name) for name in ("xmemk", "original", "STCN")]


def _video(case: VideoCase, name: str) -> Callable[[], Tensor]:
    def run() -> Tensor:
        tracker = Tracker(case.network, memory=METHODS[name].make(case.config))
        return torch.stack([tracker.step(x, case.mask if t == 0 else None) for t, x in enumerate(case.images)])

    return run


def _frame(case: VideoCase, name: str) -> Callable[[], Tensor]:
    """Each call is the frame after a memory frame, or the next memory frame."""
    tracker = Tracker(case.network, memory=filled(case, name))
    before = 1000 if case.op == "frame" else 1000 + case.config.mem_every - 1
    state = {"frame": before, "last_memory": 1000, "last_deep": 1000, "size": None}

    def run() -> Tensor:
        tracker.restore(tracker.memory, state)
        return tracker.step(case.images[0])[None]

    return run


def video_verdict(case: VideoCase, result: Tensor | None) -> Comparison | None:
    """The largest difference from the original's probabilities; None for what is not checked."""
    if result is None:
        return None
    expected = case.expected()
    if result.shape != expected.shape:
        return Comparison(f"probabilities of shape {list(result.shape)}", float("inf"), float("inf"))
    error = float((result - expected).abs().amax())
    return Comparison("probabilities", error, error / ALLOWED)
