"""What a run consists of: the cases of the presets, and what they leave out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from xmemk.benchmarks.peers import Peer
from xmemk.benchmarks.workloads import OPS


class Item(NamedTuple):
    """One table: an op on a workload with so many objects."""

    op: str
    workload: str
    objects: int = 1


@dataclass(frozen=True)
class Suite:
    """rounds and budget as time_peers has them; memory: the ops whose peaks are measured."""

    items: tuple[Item, ...]
    rounds: int = 15
    budget: float = 10.0
    dtype: str = "float32"
    memory: tuple[str, ...] = OPS
    compilers: bool = True
    left_out: tuple[str, ...] = ()
    compiled_last: bool = False

    def arguments(self, item: Item, device: str) -> dict[str, Any]:
        """What an item's case is made of, and how its result begins."""
        where = {"dtype": self.dtype, "device": device, "threads": torch.get_num_threads()}
        return {"op": item.op, "workload": item.workload, "objects": item.objects, **where}

    def omission(self, peer: Peer) -> str | None:
        """Why a peer is not part of it."""
        if (peer.compiled and not self.compilers) or peer.name in self.left_out:
            return "left out of the quick run: --full has it"
        return None


_UPKEEP = (Item("select", "480p-full"), Item("evict", "480p-full"))

# Two minutes on two cores.
QUICK = Suite(
    (
        Item("read", "480p-full"),
        Item("dense", "480p-early"),
        Item("backward", "480p-early"),
        Item("consolidate", "480p-full"),
        *_UPKEEP,
    ),
    rounds=11,
    budget=4.0,
    memory=("read",),
    compilers=False,
    left_out=("KeOps", "original, autocast"),
)

# Thirty minutes on two cores.
FULL = Suite(
    (
        *(Item("read", name, o) for name in ("480p-full", "480p-early") for o in (1, 5)),
        *(Item("dense", name, o) for name in ("480p-full", "480p-early") for o in (1, 5)),
        Item("read", "1080p-full"),
        *(Item(op, "480p-early") for op in ("train", "backward", "train-dense", "backward-dense")),
        *(Item("consolidate", name, o) for name in ("480p-full", "1080p-full") for o in (1, 5)),
        *_UPKEEP,
        *(Item(op, network) for op in ("frame", "memory-frame") for network in ("small", "full")),
        Item("video", "small"),
    ),
    rounds=11,
    budget=5.0,
)

# On a GPU, in a time given: what is most wanted first, the compiled peers when all the others are done.
GPU = Suite(
    (
        Item("read", "480p-full"),
        *_UPKEEP,
        Item("consolidate", "480p-early", 5),
        Item("dense", "480p-full"),
        Item("read", "1080p-full"),
        Item("read", "480p-full", 5),
        Item("dense", "480p-full", 5),
        *(Item(op, "480p-early", o) for op in ("read", "dense") for o in (1, 5)),
        *(Item(op, "480p-early") for op in ("train", "backward", "train-dense", "backward-dense")),
        Item("read", "1080p-full", 5),
        Item("dense", "1080p-full"),
    ),
    rounds=9,
    dtype="float16",
    memory=(),
    compiled_last=True,
)

SUITES = {"quick": QUICK, "full": FULL, "gpu": GPU}
