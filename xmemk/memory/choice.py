"""The tokens that each query chose at the last read, which the next read takes as its hint.

From one frame to the next a query's best tokens are mostly the same. A hint changes the time of a
read on the CPU, never its result (:func:`xmemk.memory_read`). The choice is kept as rows of the
storage, counted through all blocks: frames that come and go move no other row. What has left the
memory is no longer hinted at; the row of a frame that was replaced names its successor's token at
the same place of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import api
from ..inputs import MemoryInputs, QueryInputs
from .table import Run

GONE = -1


class Recall:
    """What a top-k read takes from the one before it, and leaves for the next.

    sizes: rows of each block of the storage. choice: rows [B, Q, k] of the last read, or None.
    """

    def __init__(self, runs: Sequence[Run], sizes: Sequence[int], choice: Tensor | None, queries: int) -> None:
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        rows = [torch.arange(starts[run.block] + run.start, starts[run.block] + run.stop) for run in runs]
        self._rows = torch.cat(rows)
        self.choice: Tensor | None = None
        self.hint: Tensor | None = None
        if choice is not None and choice.shape[1] == queries:
            token = self._rows.new_zeros(sum(sizes) + 1)  # a row without a token, the last one for GONE: token 0
            token[self._rows] = torch.arange(self._rows.shape[0])
            self.hint = token[choice]

    def affinity(self, functions: Any, keys: MemoryInputs, queries: QueryInputs, **options: Any) -> list[Tensor]:
        """:func:`xmemk.affinity_topk` with the hint, whose choice is kept."""
        weight, index, *usage = functions.affinity_topk(keys.mk, keys.ms, *queries, hint=self.hint, **options)
        self.choice = self._rows[index]
        return [weight, index, *usage]


def can_recall(keys: MemoryInputs, queries: QueryInputs, top_k: int | None, backend: str) -> bool:
    """Whether a read of these keys is one that a hint makes quicker, and that needs no gradient."""
    qk, qe = queries
    if qk.device.type != "cpu" or top_k is None or top_k >= keys.tokens or forward_ad._current_level >= 0:
        return False
    if torch.is_grad_enabled() and (qk.requires_grad or (qe is not None and qe.requires_grad)):
        return False
    # A backend that would refuse is left to the read, which says why.
    chosen = api.explain("affinity_topk", keys.mk, keys.ms, qk, qe, top_k=top_k, backend=backend).chosen
    return chosen == "cpu"


def after_eviction(choice: Tensor | None, index: Tensor, long_term: int) -> Tensor | None:
    """The choice once long-term tokens index[b, i], of so many rows, have moved to row i."""
    if choice is None or long_term == 0:
        return choice
    rows = torch.full((index.shape[0], long_term), GONE)
    rows.scatter_(1, index, torch.arange(index.shape[1]).expand_as(index))
    moved = rows.gather(1, choice.clamp(0, long_term - 1).flatten(1)).view_as(choice)
    return torch.where((choice >= 0) & (choice < long_term), moved, choice)
