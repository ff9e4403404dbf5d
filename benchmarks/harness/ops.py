"""What each op brings to a run: its case, its peers, how they are judged, what it costs.

The functions of the memory come from workloads, peers, verdicts and costs. Whole frames and whole videos come from
video.py, whose workloads are networks.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from xmemk.benchmarks.harness.costs import Cost, cost_of, like_shape
from xmemk.benchmarks.peers.registry import Peer, backends_of_ours, peers_of
from xmemk.benchmarks.peers.verdicts import verdict
from xmemk.benchmarks.peers.workloads import OPS, WORKLOADS, make_case

from xmemk.testing import Comparison

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FRAME_OPS = ("frame", "memory-frame", "video")
NETWORKS = ("small", "full")
ALL_OPS = (*OPS, *FRAME_OPS)


class Made(NamedTuple):
    """One op on one workload. cost and like (the shape of its product) are None where no formula says it."""

    case: Any
    judge: Callable[[Any, Any], Comparison | None]
    sizes: dict[str, Any]
    cost: Cost | None
    like: tuple[int, int, int] | None


def has_frames() -> bool:
    return importlib.util.find_spec("xmemk.benchmarks.peers.video") is not None


def peers(op: str, backends: list[str] | None, device: str) -> list[Peer]:
    """Ours first. ``backends`` None: all that have kernels for it."""
    if op in FRAME_OPS:
        return list(importlib.import_module("xmemk.benchmarks.peers.video").VIDEO_PEERS)
    return peers_of(op, backends or backends_of_ours(op, device))


def make(arguments: dict[str, Any]) -> Made:
    """The same inputs for every peer. ``arguments``: op, workload, objects, dtype, device."""
    op, workload, device = arguments["op"], arguments["workload"], arguments["device"]
    if op in FRAME_OPS:
        video = importlib.import_module("xmemk.benchmarks.peers.video")
        case = video.make_video_case(op, workload, device=device)
        height, width = case.mask.shape
        sizes = {"tokens": None, "queries": case.grid[0] * case.grid[1], "top_k": case.config.top_k}
        sizes |= {"height": height, "width": width, "frames": len(case.images), "flops": None, "bytes": None}
        return Made(case, video.video_verdict, sizes, None, None)
    dtype = DTYPES[arguments["dtype"]]
    case = make_case(op, WORKLOADS[workload], objects=arguments["objects"], dtype=dtype, device=device)
    cost, small = cost_of(case), op in ("select", "evict")
    queries = case.workload.prototypes if op == "consolidate" else case.inputs.qk.shape[2]
    sizes = {"tokens": case.inputs.mk.shape[2], "queries": None if small else queries}
    sizes |= {"top_k": None if small else case.top_k, "flops": cost.flops, "bytes": cost.bytes}
    return Made(case, verdict, sizes, cost, like_shape(case))
