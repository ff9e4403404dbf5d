"""What a run consists of: the cases of the presets, and what they leave out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from xmemk.benchmarks.peers.catalogue import Peer
from xmemk.benchmarks.peers.workloads import GRADIENTS, READS


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
    are never timed, and ``why`` not.
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

    def arguments(self, item: SuiteItem, device: str) -> dict[str, Any]:
        """What an item's case is made of, and how its result begins."""
        where = {"dtype": self.dtype, "device": device, "threads": torch.get_num_threads()}
        return {"op": item.op, "workload": item.workload, "objects": item.objects, **where}

    def omission(self, item: SuiteItem, peer: Peer) -> str | None:
        """Why a peer is not part of it."""
        if peer.name in self.left_out:
            return self.why
        if peer.compiled and self.compilers is not None and item not in self.compilers:
            where = [f"{i.workload} with {i.objects} object(s)" for i in self.compilers if i.op == item.op]
            return f"left out here: compilers are tried on {where[0]}" if where else self.why or "left out here"
        return None


_UPKEEP = (SuiteItem("select_prototypes", "480p-full"), SuiteItem("evict_lfu", "480p-full"))

_SLOW_ON_CPUS = ("KeOps", "original, autocast", "original, autocast, torch.compile")  # minutes for a case

# Two minutes on two cores.
QUICK = Suite(
    (
        SuiteItem("memory_read", "480p-full"),
        SuiteItem("memory_read_dense", "480p-early"),
        SuiteItem("memory_read_backward", "480p-early"),
        SuiteItem("consolidate", "480p-full"),
        *_UPKEEP,
    ),
    rounds=10,
    budget=4.0,
    memory=("memory_read",),
    compilers=(),
    left_out=_SLOW_ON_CPUS,
    why="left out of the quick run: run.py --op OP has it",
)

# A quarter of an hour on two cores; growth, length and claims take `xmemk bench --full` to half an
# hour.
FULL = Suite(
    (
        *(SuiteItem("memory_read", "480p-full", o) for o in (1, 5)),
        *(SuiteItem("memory_read_dense", "480p-full", o) for o in (1, 5)),
        SuiteItem("memory_read", "1080p-full"),
        *(SuiteItem(op, "480p-early") for op in GRADIENTS),
        *(SuiteItem("consolidate", "480p-full", o) for o in (1, 5)),
        *_UPKEEP,
        *(SuiteItem("frame", network) for network in ("small", "full")),
        SuiteItem("memory_frame", "full"),
        SuiteItem("video", "small"),
    ),
    budget=4.0,
    memory=(*READS, "consolidate"),
    compilers=(SuiteItem("memory_read", "480p-full"), SuiteItem("memory_read_dense", "480p-full")),
    left_out=_SLOW_ON_CPUS,
    why="left out of the full run, which it would lengthen by minutes: run.py --op OP has it",
)

# On a GPU, in a time given: what is most wanted first, the compiled peers when all the others are
# done.
GPU = Suite(
    (
        SuiteItem("memory_read", "480p-full"),
        *_UPKEEP,
        SuiteItem("consolidate", "480p-early", 5),
        SuiteItem("memory_read_dense", "480p-full"),
        SuiteItem("memory_read", "1080p-full"),
        SuiteItem("memory_read", "480p-full", 5),
        SuiteItem("memory_read_dense", "480p-full", 5),
        *(SuiteItem(op, "480p-early", o) for op in READS for o in (1, 5)),
        *(SuiteItem(op, "480p-early") for op in GRADIENTS),
        SuiteItem("memory_read", "1080p-full", 5),
        SuiteItem("memory_read_dense", "1080p-full"),
    ),
    rounds=9,
    sweeps=1,
    dtype="float16",
    memory=(),
    compiled_last=True,
)

SUITES = {"quick": QUICK, "full": FULL, "gpu": GPU}
