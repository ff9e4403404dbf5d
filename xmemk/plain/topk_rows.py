"""The k largest of each row, by value and then by lowest index."""

from __future__ import annotations

import torch
from torch import Tensor

from ..modes import may_look_at


def topk_rows(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """score [B, Q, N], k < N -> values, index [B, Q, k], descending.

    torch.topk leaves open which of several equal scores at rank k it takes. On the CPU in eager
    mode the lowest index wins such a tie. Elsewhere, where a look at the scores would wait, the
    choice of torch.topk stands.
    """
    if torch.compiler.is_compiling() or score.device.type != "cpu":
        values, index = score.topk(k, dim=2)
        return values, index
    if not may_look_at(score):
        values, index = score.sort(dim=2, descending=True, stable=True)
        return values[..., :k], index[..., :k]
    values, index = score.topk(k + 1, dim=2)
    equal = values[..., 1:] == values[..., :-1]
    values, index = values[..., :k].contiguous(), index[..., :k].contiguous()
    tied = equal[..., -1]
    if tied.any():
        index[tied] = _lowest_tied(score[tied], values[tied][:, -1:], k)
        values[tied] = score[tied].gather(1, index[tied])
    runs = equal[..., :-1].any(2)
    if runs.any():
        index[runs] = _runs_ascending(values[runs], index[runs])
    return values, index


def _lowest_tied(rows: Tensor, threshold: Tensor, k: int) -> Tensor:
    """rows [R, N] -> index [R, k], best first.

    The k-th largest value of these rows, threshold [R, 1], occurs beyond rank k as well.
    """
    above, equal = rows > threshold, rows == threshold
    room = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= room))
    index = chosen.nonzero()[:, 1].view(-1, k)
    order = rows.gather(1, index).argsort(dim=1, descending=True, stable=True)
    return index.gather(1, order)


def _runs_ascending(values: Tensor, index: Tensor) -> Tensor:
    """values, index [R, k]: the index within runs of equal values put in ascending order."""
    by_index = index.argsort(dim=1)
    by_value = values.gather(1, by_index).argsort(dim=1, descending=True, stable=True)
    return index.gather(1, by_index.gather(1, by_value))
