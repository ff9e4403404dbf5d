"""What each op brings to a run: its case, its peers, how they are judged, what it costs.

Functions of the memory come from workloads, catalogue, verdicts and costs. Whole frames and whole
videos come from video.py, whose workloads are networks.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from xmemk.benchmarks.harness.costs import OpCost, cost_of, product_shape
from xmemk.benchmarks.peers.catalogue import Peer, backends_of_ours, peers_of
from xmemk.benchmarks.peers.verdicts import verdict
from xmemk.benchmarks.peers.workloads import FRAME_OPS, WORKLOADS, make_case, sizes_of

from xmemk.testing import Comparison

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NETWORKS = ("small", "full")
VIDEO = "xmemk.benchmarks.peers.video"


class CaseSetup(NamedTuple):
    """One op on one workload.

    cost and product (the shape of its product) are None where no formula says it.
    """

    case: Any
    judge: Callable[[Any, Any], Comparison | None]
    sizes: dict[str, Any]
    cost: OpCost | None
    product: tuple[int, int, int] | None


def has_frames() -> bool:
    return importlib.util.find_spec(VIDEO) is not None


def peers(op: str, backends: list[str] | None, device: str) -> list[Peer]:
    """Ours first. ``backends`` None: all that have kernels for it."""
    if op in FRAME_OPS:
        return list(importlib.import_module(VIDEO).VIDEO_PEERS)
    return peers_of(op, backends or backends_of_ours(op, device))


def make(arguments: dict[str, Any]) -> CaseSetup:
    """The same inputs for every peer. ``arguments``: op, workload, objects, dtype, device."""
    op, workload, device = arguments["op"], arguments["workload"], arguments["device"]
    if op in FRAME_OPS:
        video = importlib.import_module(VIDEO)
        case = video.make_video_case(op, workload, device=device)
        height, width = case.mask.shape
        sizes = {"queries": case.grid[0] * case.grid[1], "top_k": case.config.top_k}
        sizes |= {"height": height, "width": width, "frames": len(case.images)}
        return CaseSetup(case, video.video_verdict, sizes, None, None)
    dtype = DTYPES[arguments["dtype"]]
    case = make_case(op, WORKLOADS[workload], objects=arguments["objects"], dtype=dtype, device=device)
    cost = cost_of(case)
    return CaseSetup(case, verdict, {**sizes_of(op, case.workload), **cost._asdict()}, cost, product_shape(case))
