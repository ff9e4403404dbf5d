"""The named workloads that every benchmark runs, so that figures from different machines are of the
same work.

Sizes are those of a video of that height with XMem's defaults: HW = (height / 16) x (width / 16)
tokens a frame, 9 frames in working memory, 10,000 tokens in long-term memory (full), or 5 frames
alone (early). Ops have the package's names. A suffix says what else is timed: ``_dense`` a read of
all tokens, ``_train`` forward and backward, ``_backward`` the backward pass alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xmemk.testing import Inputs, make_inputs

READS = ("memory_read", "memory_read_dense")
GRADIENTS = (
    "memory_read_train", "memory_read_backward", "memory_read_dense_train", "memory_read_dense_backward"
)  # fmt: skip
UPKEEP = ("select_prototypes", "evict_lfu")  # they choose from usage alone
OPS = (*READS, *GRADIENTS, "consolidate", *UPKEEP)
FRAME_OPS = ("frame", "memory_frame", "video")  # of the whole network: see video.py
ALL_OPS = (*OPS, *FRAME_OPS)
FORMER_NAMES = {
    "read": "memory_read",
    "dense": "memory_read_dense",
    "train": "memory_read_train",
    "backward": "memory_read_backward",
    "train-dense": "memory_read_dense_train",
    "backward-dense": "memory_read_dense_backward",
    "select": "select_prototypes",
    "evict": "evict_lfu",
    "memory-frame": "memory_frame",
}


def op_name(name: str) -> str:
    """The package's name of an op; earlier versions wrote others into result files."""
    return FORMER_NAMES.get(name, name)


@dataclass(frozen=True)
class Workload:
    """Q queries read N tokens; a consolidation makes ``prototypes`` of ``candidates``."""

    name: str
    queries: int
    tokens: int
    candidates: int
    top_k: int = 30
    prototypes: int = 128
    long_term: int = 10_000
    key_channels: int = 64
    value_channels: int = 512


WORKLOADS = {
    w.name: w
    for w in (
        Workload("480p-early", queries=1_620, tokens=8_100, candidates=8_100),
        Workload("480p-full", queries=1_620, tokens=24_580, candidates=8_100),
        Workload("1080p-full", queries=8_160, tokens=83_440, candidates=40_800),
        Workload("tiny", queries=40, tokens=300, candidates=150, prototypes=16, long_term=200, value_channels=32),
    )
}


def sizes_of(op: str, w: Workload) -> dict[str, int | None]:
    """tokens, queries and top_k of an op; None where it has none, or reads all tokens."""
    tokens = w.long_term if op == "evict_lfu" else w.tokens if op.startswith("memory_read") else w.candidates
    queries = None if op in UPKEEP else w.prototypes if op == "consolidate" else w.queries
    top_k = w.top_k if op.startswith("memory_read") and "dense" not in op else None
    return {"tokens": tokens, "queries": queries, "top_k": top_k}


@dataclass(frozen=True)
class OpCase:
    """One op on one workload: what the peers are given."""

    op: str
    workload: Workload
    inputs: Inputs

    @property
    def top_k(self) -> int | None:
        """None where all tokens are read."""
        return sizes_of(self.op, self.workload)["top_k"]

    @property
    def device(self) -> torch.device:
        return self.inputs.mk.device

    @property
    def matrix(self) -> int:
        """Pairs of query and token: most formulations hold a number for each."""
        queries = self.workload.prototypes if self.op == "consolidate" else self.inputs.qk.shape[2]
        return queries * self.inputs.mk.shape[2]

    @property
    def usage(self) -> torch.Tensor:
        """[1, N] of what select_prototypes and evict_lfu choose from."""
        return self.inputs.usage


def make_case(
    op: str,
    workload: Workload,
    *,
    objects: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> OpCase:
    """The same numbers for every peer, token-major, with shrinkage and selection, on ``device``."""
    if op not in OPS:
        raise ValueError(f"op: wanted one of {', '.join(OPS)}, got {op!r}")
    sizes, upkeep = sizes_of(op, workload), op in UPKEEP
    inputs = make_inputs(
        sizes["tokens"] or 0,
        sizes["queries"] or 1,
        objects=objects,
        key_channels=1 if upkeep else workload.key_channels,
        value_channels=1 if upkeep else workload.value_channels,
        dtype=dtype,
        device=device,
        seed=seed,
    )
    return OpCase(op, workload, inputs)
