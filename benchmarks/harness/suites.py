"""What a run consists of: the cases of the presets, and what they leave out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
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


def _suite(stored: dict[str, Any]) -> Suite:
    cases = {name: tuple(SuiteItem(*case) for case in stored.get(name) or ()) for name in ("items", "compilers")}
    if "compilers" not in stored:
        del cases["compilers"]
    fields: dict[str, Any] = {**{name: tuple(x) if isinstance(x, list) else x for name, x in stored.items()}, **cases}
    return Suite(**fields)


# quick: two minutes on two cores. full: a quarter of an hour; growth, length and claims take
# `xmemk bench --full` to half an hour. gpu: within the time given, what is most wanted first, the
# compiled peers when all the others are done.
SUITES = {name: _suite(x) for name, x in json.loads(Path(__file__).with_name("suites.json").read_text()).items()}
