"""Fig. 5 of the paper: quality over the length of the video, XMem's memory beside STCN's.

The figure has J&F on Long-time Video played back and forth 1 to 10 times, STCN with at most 50
memory frames ("we limit their feature memory insertion frequency accordingly"), XMem with r = 10,
and a least-squares line through each. Neither the dataset nor trained weights are at hand. Here the
bundled clip from its annotated frame on is played back and forth, objects are propagated by the
demo's hand-made features, and J is taken on the frames whose masks are known, each time they pass.
So it shows what the rules of the two memories do to the same features, not what XMem scores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from xmemk.benchmarks.peers.clip import there_and_back
from xmemk.benchmarks.peers.memories import held_bytes, held_tokens
from xmemk.benchmarks.report.schema import NOT_REACHED, VideoTrack

from xmemk.data import BUNNY
from xmemk.evaluation import policies
from xmemk.reference import MemoryConfig

SIZE = (256, 144)  # width, height
START = 40  # the annotated frame of the clip
TIMES = (1, 2, 4, 7, 10)
SECONDS = {False: 55.0, True: 8.0}  # about what both curves take, in full and quick
MEMORY_FRAMES = 50  # of STCN, whatever the video's length
DRAWN = Path(__file__).resolve().parents[2] / "tests" / "data" / "bunny"  # in a checkout: masks of four more frames


def known_masks(size: tuple[int, int] = SIZE) -> dict[int, Tensor]:
    """Frame of the clip -> its mask [H, W], at this size (width, height)."""
    from xmemk.data.masks import read_mask

    paths = [BUNNY / f"{START:05}.png", *sorted(DRAWN.glob("*.png"))]
    width, height = size
    return {int(p.stem): F.interpolate(read_mask(p)[None, None], (height, width))[0, 0] for p in paths}


def region_similarity(labels: Tensor, known: Tensor) -> float:
    """J: intersection over union of all objects' pixels."""
    labels, known = labels > 0, known > 0
    union = int((labels | known).sum())
    return int((labels & known).sum()) / union if union else 1.0


def follow(
    policy: str, frames: list[Tensor], masks: dict[int, Tensor], times: int, until: float | None = None
) -> Iterator[dict[str, Any]]:
    """The clip ``times`` times, and a point after each: mean J of all known frames passed so far.

    Nothing comes after ``until`` (of time.monotonic).
    """
    from xmemk.demo.tracker import MEMORY_CONFIG, DemoTracker

    config = MemoryConfig(hidden_dim=0, top_k=MEMORY_CONFIG["top_k"], mem_every=10)
    if policy == "stcn":
        config = replace(config, mem_every=max(1, -(-times * len(frames) // MEMORY_FRAMES)))
    memory = policies.make_memory(policy, config)
    tracker = DemoTracker(memory, frames[0], masks[START], mem_every=config.mem_every)
    judged, seconds = [], []
    for t in range(1, times * len(frames)):
        if until is not None and time.monotonic() > until:
            return
        place = there_and_back(t, len(frames))
        start = time.perf_counter()
        labels = tracker.step(frames[place])
        seconds.append(time.perf_counter() - start)
        if START + place in masks:
            judged.append(region_similarity(labels, masks[START + place]))
        if (t + 1) % len(frames) == 0 and judged:
            yield {
                "frame": t + 1,
                "seconds": statistics.median(seconds[-len(frames) :]),
                "bytes": held_bytes(memory),
                "tokens": held_tokens(memory),
                "quality": statistics.fmean(judged),
                "judged": len(judged),
            }


def measure(
    *,
    quick: bool = False,
    size: tuple[int, int] = SIZE,
    count: int | None = None,
    times: tuple[int, ...] | None = None,
    until: float | None = None,
    results: list[VideoTrack] | None = None,
) -> list[VideoTrack]:
    """Both curves, XMem's from one run, since it does not ask how long a video is, STCN's from a
    run per length.

    They are put into ``results`` as their points come. What is not reached before ``until`` is the
    reason.
    """
    from xmemk.data.video import read_frames
    from xmemk.demo.features import CELL, grid_size

    times = times or (TIMES[:2] if quick else TIMES)
    frames = list(read_frames(BUNNY / "clip.mp4", size, START))[:count]
    masks = known_masks(size)
    height, width = grid_size(size[1], size[0])
    features = {"height": height, "width": width, "key_channels": 12, "value_channels": CELL * CELL, "objects": 1}
    judged = sorted(START + i for i in range(len(frames)) if START + i in masks)
    tracks = []
    for name, policy, ours in (("xmemk", "xmem", True), (f"STCN, {MEMORY_FRAMES} frames", "stcn", False)):
        track = VideoTrack("fig5", name, [], ours, features=features, judged_frames=judged, reason="interrupted")
        tracks.append(track)
        if results is not None:
            results.append(track)
        left = until
        if until is not None and ours:
            left = time.monotonic() + (until - time.monotonic()) / 2
        if ours:
            for point in follow(policy, frames, masks, times[-1], left):
                track.points += [point] if point["frame"] // len(frames) in times else []
        else:
            for n in times:
                track.points += list(follow(policy, frames, masks, n, left))[n - 1 :]
        reached = [p["frame"] for p in track.points]
        missing = [str(n * len(frames)) for n in times if n * len(frames) not in reached]
        track.reason = f"{NOT_REACHED}: {', '.join(missing)} frames" if missing else ""
        track.fit = fit(reached, [p["quality"] for p in track.points])
    return tracks


def fit(x: list[int], y: list[float]) -> dict[str, float] | None:
    """The least-squares line, as the paper draws it."""
    if len(x) < 2:
        return None
    columns = torch.tensor([[1.0, a] for a in x], dtype=torch.float64)
    intercept, slope = torch.linalg.lstsq(columns, torch.tensor(y, dtype=torch.float64)[:, None]).solution[:, 0]
    return {"intercept": float(intercept), "per_1000_frames": 1000 * float(slope)}
