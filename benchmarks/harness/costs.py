"""What an op must at least compute and move, by formula, and how fast this machine computes and
moves: the roof.

A product counts two operations per term. The similarity is one product of augmented operands, and
the readout counts the tokens whose values are read: all, or in a top-k read k, since all queries
may choose the same. A backward pass multiplies twice as much for each of them, the similarity's
gradients included. A consolidation is a dense read of the prototypes, whose values have one channel
more, the shrinkage.

Exponentials, comparisons, selection, and what a backward pass computes again are not counted. Bytes
are those that no implementation avoids: each number of the operands and results once. So a share of
the roof compares with a machine that does nothing but the products, or nothing but read its
operands. Small cases lie in caches, and may pass 100 %.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.benchmark import Timer
from xmemk.benchmarks.peers.workloads import READS, UPKEEP, OpCase

GEMM_SIDE = 2048
COPY_BYTES = 2**28


class OpCost(NamedTuple):
    flops: int
    bytes: int

    def seconds_at(self, roof: Roof) -> float:
        """The least time that the roof leaves."""
        return max(self.flops / (1e9 * roof.gflops), self.bytes / (1e9 * roof.gbytes_per_s))


class Roof(NamedTuple):
    """GFLOP/s of the best matrix product, GB/s of a large copy (read and written)."""

    gflops: float
    gbytes_per_s: float

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 1) for name, value in self._asdict().items()}


def cost_of(case: OpCase) -> OpCost:
    """Works on inputs without data, too."""
    x, w = case.inputs, case.workload
    if case.op in UPKEEP:
        n = case.usage.shape[1]
        return OpCost(0, 4 * n + 8 * (w.prototypes if case.op == "select_prototypes" else n - w.prototypes))
    o, cv, n = x.mv.shape[1:]
    c, q, v, e = x.mk.shape[1], x.qk.shape[2], o * cv, x.mv.element_size()
    if case.op == "consolidate":
        q, v = w.prototypes, v + 1
    met = n if case.top_k is None else min(case.top_k, n)
    read = o * cv  # without the shrinkage of a consolidation, which the memory has
    memory, queries, values = n * (c * e + 4), 2 * q * c * e, met * read * e
    forward = OpCost(2 * q * n * (2 * c + 1) + 2 * q * met * v, memory + values + queries + q * v * e)
    if case.op in (*READS, "consolidate"):
        return OpCost(forward.flops, forward.bytes + 4 * n)
    # The gradient of the values has a number for every token, whether it was read or not.
    backward = OpCost(
        4 * q * met * v + 4 * q * met * (2 * c + 1), 2 * (memory + queries) + values + n * v * e + q * v * e
    )
    if case.op.endswith("backward"):
        return backward
    return OpCost(forward.flops + backward.flops, forward.bytes + backward.bytes - memory - queries - values)


def product_shape(case: OpCase) -> tuple[int, int, int]:
    """Rows, columns and contraction of the case's similarity product."""
    x = case.inputs
    return x.qk.shape[2], x.mk.shape[2], 2 * x.mk.shape[1] + 1


def measure_roof(device: str, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float = 0.5) -> Roof:
    """The best of a square product and one of this ``shape``, and of copies of 256 MB; each for
    ``seconds``.

    On the CPU torch.mm is one library's product, a convolution by a 1 x 1 kernel another's: both
    are tried.
    """
    rates: list[float] = []
    for m, n, k in ((GEMM_SIDE, GEMM_SIDE, GEMM_SIDE), shape):
        a, b = torch.randn(m, k).to(device, dtype), torch.randn(n, k).to(device, dtype)
        out = torch.empty(m, n, device=device, dtype=dtype)
        calls: list[Callable[[], Any]] = [partial(torch.mm, a, b.T, out=out)]
        if torch.device(device).type == "cpu":
            image, kernel = b.T.contiguous()[None, :, :, None], a[:, :, None, None]
            calls.append(partial(torch.nn.functional.conv2d, image, kernel))
        rates += [2 * m * n * k / _best(call, seconds) for call in calls]
    source = torch.zeros(COPY_BYTES, dtype=torch.int8, device=device)
    rate = 2 * COPY_BYTES / _best(partial(torch.empty_like(source).copy_, source), seconds)
    return Roof(max(rates) / 1e9, rate / 1e9)


def _best(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of a call in the fastest block of calls."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=seconds).times)
