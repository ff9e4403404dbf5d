"""What a run consists of: the cases of the presets; and of each its inputs, peers, judge, cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from xmemk.benchmarks.harness.costs import OpCost, cost_of, product_shape
from xmemk.benchmarks.peers import video
from xmemk.benchmarks.peers.catalogue import Peer, backends_of_ours, peers_of
from xmemk.benchmarks.peers.verdicts import verdict
from xmemk.benchmarks.peers.workloads import FRAME_OPS, GRADIENTS, READS, WORKLOADS, make_case, sizes_of

from xmemk.testing import Comparison

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class CaseSetup(NamedTuple):
    """One op on one workload.

    cost and product (the shape of its product) are None where no formula says it.
    """

    case: Any
    judge: Callable[[Any, Any], Comparison | None]
    sizes: dict[str, Any]
    cost: OpCost | None
    product: tuple[int, int, int] | None


def peers(op: str, backends: list[str] | None, device: str) -> list[Peer]:
    """Ours first. ``backends`` None: all that have kernels for it."""
    return list(video.VIDEO_PEERS) if op in FRAME_OPS else peers_of(op, backends or backends_of_ours(op, device))


def make(arguments: dict[str, Any]) -> CaseSetup:
    """The same inputs for every peer. ``arguments``: op, workload, objects, dtype, device."""
    op, workload, device = arguments["op"], arguments["workload"], arguments["device"]
    if op in FRAME_OPS:
        clip = video.make_video_case(op, workload, device=device)
        height, width = clip.mask.shape
        sizes = {"queries": clip.grid[0] * clip.grid[1], "top_k": clip.config.top_k}
        sizes |= {"height": height, "width": width, "frames": len(clip.images)}
        return CaseSetup(clip, video.video_verdict, sizes, None, None)
    dtype = DTYPES[arguments["dtype"]]
    case = make_case(op, WORKLOADS[workload], objects=arguments["objects"], dtype=dtype, device=device)
    cost = cost_of(case)
    return CaseSetup(case, verdict, {**sizes_of(op, case.workload), **cost._asdict()}, cost, product_shape(case))


class SuiteItem(NamedTuple):
    """One table: an op on a workload with so many objects."""

    op: str
    workload: str
    objects: int = 1


@dataclass(frozen=True)
class Suite:
    """rounds and budget as time_peers has them, over all sweeps.

    sweeps: how often the run goes through its cases. A case's rounds are spread over them, so that
    other work on the machine falls on some of them. memory: the ops whose peaks are measured.
    compilers: the items on which peers that compile are timed, None for all. left_out: peers that
    are never timed, and ``why`` not. compiled_last: those that compile come after all others. even:
    the cases share the time that is given, else those that are named first come first.
    """

    items: tuple[SuiteItem, ...]
    rounds: int = 15
    sweeps: int = 5
    budget: float = 10.0
    dtype: str = "float32"
    memory: tuple[str, ...] = (*READS, *GRADIENTS, "consolidate")
    compilers: tuple[SuiteItem, ...] | None = None
    left_out: tuple[str, ...] = ()
    why: str = ""
    compiled_last: bool = False
    even: bool = True

    def arguments(self, item: SuiteItem, device: str) -> dict[str, Any]:
        """What an item's case is made of, and how its result begins."""
        return {**item._asdict(), "dtype": self.dtype, "device": device, "threads": torch.get_num_threads()}

    def omission(self, item: SuiteItem, peer: Peer) -> str | None:
        """Why a peer is not part of it."""
        if peer.name in self.left_out:
            return self.why
        if peer.compiled and self.compilers is not None and item not in self.compilers:
            where = [f"{i.workload} with {i.objects} object(s)" for i in self.compilers if i.op == item.op]
            return f"left out here: compilers are tried on {where[0]}" if where else self.why or "left out here"
        return None


def _suite(stored: dict[str, Any]) -> Suite:
    fields: dict[str, Any] = {
        name: tuple(SuiteItem(*item) for item in stored[name]) for name in {"items", "compilers"} & stored.keys()
    }
    fields = {name: tuple(x) if isinstance(x, list) else x for name, x in stored.items()} | fields
    return Suite(**fields)


# quick: two minutes on two cores. full: a quarter of an hour; growth, length and claims take
# `xmemk bench --full` to half an hour. gpu: within the time given, what is most wanted first.
SUITES = {name: _suite(x) for name, x in json.loads(Path(__file__).with_name("suites.json").read_text()).items()}
