"""The named workloads that every benchmark here runs, so that figures from different machines speak of the same work.

Sizes are those of a video of that height with XMem's defaults: HW = (height / 16) x (width / 16) tokens a frame, 9
frames in working memory, 10,000 tokens in long-term memory (full), or 5 frames alone (early).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xmemk.testing import Inputs, make_inputs


@dataclass(frozen=True)
class Workload:
    """Q queries read N tokens; one consolidation has ``candidates`` of them and makes ``prototypes``."""

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

# What is done with a workload. "train" is forward and backward of the top-k read, "backward" the second half alone.
OPS = ("read", "dense", "train", "backward", "train-dense", "backward-dense", "consolidate", "select", "evict")


@dataclass(frozen=True)
class Case:
    """One op on one workload: what the peers are given."""

    op: str
    workload: Workload
    inputs: Inputs

    @property
    def top_k(self) -> int | None:
        """None where all tokens are read."""
        return None if self.op in ("dense", "train-dense", "backward-dense", "consolidate") else self.workload.top_k

    @property
    def device(self) -> torch.device:
        return self.inputs.mk.device

    @property
    def matrix(self) -> int:
        """Pairs of query and token, which most formulations hold a number for."""
        queries = self.workload.prototypes if self.op == "consolidate" else self.inputs.qk.shape[2]
        return queries * self.inputs.mk.shape[2]

    @property
    def usage(self) -> torch.Tensor:
        """[1, N] of what "select" and "evict" choose from."""
        return self.inputs.usage


def make_case(
    op: str,
    workload: Workload,
    *,
    objects: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Case:
    """The same numbers for every peer, token-major, with shrinkage and selection, on ``device``."""
    if op not in OPS:
        raise ValueError(f"op: wanted one of {', '.join(OPS)}, got {op!r}")
    tokens = {"consolidate": workload.candidates, "select": workload.candidates, "evict": workload.long_term}
    small = op in ("select", "evict")
    inputs = make_inputs(
        tokens.get(op, workload.tokens),
        1 if small else workload.prototypes if op == "consolidate" else workload.queries,
        objects=objects,
        key_channels=1 if small else workload.key_channels,
        value_channels=1 if small else workload.value_channels,
        dtype=dtype,
        device=device,
        seed=seed,
    )
    return Case(op, workload, inputs)
