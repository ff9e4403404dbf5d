"""The similarity of Eq. 2 as one matrix product, with keys translated by a median key.

    S = -(s / sqrt(CK)) * sum_c e (k - q)^2 = -s' k^2 . e  +  2 s' k . (e q)  -  s' * sum_c e q^2,
    s' = s / sqrt(CK),

is the product of a memory operand [2 CK + 1, N] and a query operand [Q, 2 CK + 1]. The three terms
cancel for the best matches. Translating k and q by a median key leaves S as it is and makes the
terms small. S comes from the direct form instead, channel by channel, where a term could overflow,
where queries lie so far from that key that rounding would show in their weights, and for float64;
but not on a device or under a compiler, where nobody looks at numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from ..modes import differentiated, may_look_at
from .tokens import gather_rows

_CENTER_SAMPLES = 128  # keys whose median is the center

# Products below this share of the largest number cannot add up to an overflow (a score has 2 CK + 1
# terms), so no score can be NaN.
_SAFE_SHARE = 1e-5

# s' * sum_c e q^2 below this leaves a score within 1e-2 in float32. A network's features stay
# below a thousand.
ACCURATE_OFFSET = 1e5


class DirectForm(NamedTuple):
    """What the direct form is computed from, in the dtype of the arithmetic."""

    k: Tensor  # [B, CK, N]
    s: Tensor | None  # [B, 1, N]
    q: Tensor  # [B, CK, Q]
    e: Tensor | None  # [B, CK, Q]

    def scores(self, start: int | None, stop: int | None) -> Tensor:
        q = self.q[..., start:stop].unsqueeze(3)
        distance = q.new_zeros(*q.shape[::2], self.k.shape[2])
        for c in range(self.k.shape[1]):
            difference = self.k[:, c].unsqueeze(1) - q[:, c]
            pull = difference if self.e is None else difference * self.e[:, c, start:stop].unsqueeze(2)
            distance = distance + pull * difference
        score = -distance / math.sqrt(self.k.shape[1])
        return score if self.s is None else score * self.s


class Operands(NamedTuple):
    """Both sides of the product. ``safe``: no score can be NaN or +inf."""

    memory: Tensor  # [B, 2 CK + 1, N]
    query: Tensor  # [B, Q, 2 CK + 1]
    safe: bool
    direct: DirectForm | None = None  # in place of the product, where that may overflow
    readable: Tensor | None = None  # [B, 1, N], where tokens that are not have been replaced

    def raw_scores(self, start: int | None = None, stop: int | None = None) -> Tensor:
        """Similarity [B, stop - start, N] of a block of queries."""
        direct = self.direct
        score = self.query[:, start:stop] @ self.memory if direct is None else direct.scores(start, stop)
        return score if self.readable is None else torch.where(self.readable, score, math.nan)

    def scores(self, start: int | None = None, stop: int | None = None) -> Tensor:
        """The same; what cannot be read is -inf."""
        score = self.raw_scores(start, stop)
        if self.safe and self.readable is None:
            return score
        return torch.where(score.isnan() | (score == math.inf), -math.inf, score)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: float32 for the 16-bit types."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def center_key(mk: list[Tensor]) -> Tensor:
    """A median key [B, CK, 1]: per channel the median of some keys, evenly from all segments.

    The similarity does not depend on it, only its rounding. It is a median and no mean, because
    neither a key that is not finite nor a few enormous ones move a median away from the rest.
    """
    sample = torch.arange(_CENTER_SAMPLES, device=mk[0].device) * sum(k.shape[2] for k in mk) // _CENTER_SAMPLES
    samples = gather_rows(mk, sample.expand(mk[0].shape[0], 1, -1), compute_dtype(mk[0].dtype))
    center = samples[:, 0].nanmedian(1).values.unsqueeze(2)
    return torch.where(center.isfinite(), center, 0.0)


def operands(memory: MemoryInputs, queries: QueryInputs, largest_offset: float = ACCURATE_OFFSET) -> Operands:
    """Both sides of the product, of all segments, in :func:`compute_dtype`.

    Where s' * sum_c e q^2 is not below ``largest_offset``, scores come from the direct form.
    """
    dtype = compute_dtype(queries.qk.dtype)
    center = center_key(memory.mk)
    memory, readable = _without_what_is_not_finite(memory, queries)
    columns = []
    for i, key in enumerate(memory.mk):
        k = key.to(dtype) - center
        s = k.new_ones(k.shape[0], 1, k.shape[2]) if memory.ms is None else memory.ms[i].to(dtype)
        s = s / math.sqrt(k.shape[1])
        sk = s * k
        columns.append(torch.cat([-sk * k, 2 * sk, -s], 1))
    left = columns[0] if len(columns) == 1 else torch.cat(columns, 2)
    q = (queries.qk.to(dtype) - center).transpose(1, 2)
    e = torch.ones_like(q) if queries.qe is None else queries.qe.to(dtype).transpose(1, 2)
    eq = e * q
    right = torch.cat([e, eq, (eq * q).sum(2, keepdim=True)], 2)
    sides = left, right
    if not (may_look_at(left) and may_look_at(right)) or left.numel() == 0 or right.numel() == 0:
        return Operands(*sides, safe=False, readable=readable)
    limit = _SAFE_SHARE * torch.finfo(dtype).max
    safe = bool(_largest(left) * _largest(right) < limit)  # NaN compares false
    if safe and dtype == torch.float32 and _offset(left, right) < largest_offset:
        return Operands(*sides, safe=True, readable=readable)
    # What is not finite by itself scores -inf in any form; the rest decides on the form.
    direct = _direct_form(memory, queries)
    left = left.where(_finite(direct.k, direct.s), 0.0)
    right = right.where(_finite(direct.q, direct.e).transpose(1, 2), 0.0)
    expanded = _largest(left) * _largest(right) < limit and _offset(left, right) < largest_offset
    if expanded and dtype == torch.float32:
        return Operands(*sides, safe=False, readable=readable)
    return Operands(*sides, safe=safe, direct=direct, readable=readable)


def _without_what_is_not_finite(memory: MemoryInputs, queries: QueryInputs) -> tuple[MemoryInputs, Tensor | None]:
    """Where derivatives are recorded: 0 times a number that is not finite would be NaN in them."""
    if not differentiated((*memory.mk, *(memory.ms or ()), *queries)):
        return memory, None
    shrinkage: list[Tensor] | list[None] = [None] * len(memory.mk) if memory.ms is None else memory.ms
    readable = [_finite(k, s) for k, s in zip(memory.mk, shrinkage)]
    mk = [k.where(r, 0.0) for k, r in zip(memory.mk, readable)]
    ms = None if memory.ms is None else [s.where(r, 0.0) for s, r in zip(memory.ms, readable)]
    return MemoryInputs(mk, ms, memory.mv), torch.cat(readable, 2)


def _finite(x: Tensor, y: Tensor | None) -> Tensor:
    """x, y [B, C, n] -> whether all channels of both are finite, [B, 1, n]"""
    finite = x.isfinite().all(1, keepdim=True)
    return finite if y is None else finite & y.isfinite().all(1, keepdim=True)


def _direct_form(memory: MemoryInputs, queries: QueryInputs) -> DirectForm:
    dtype = compute_dtype(queries.qk.dtype)
    k = torch.cat([key.to(dtype) for key in memory.mk], 2)
    s = None if memory.ms is None else torch.cat([x.to(dtype) for x in memory.ms], 2)
    return DirectForm(k, s, queries.qk.to(dtype), None if queries.qe is None else queries.qe.to(dtype))


def _offset(left: Tensor, right: Tensor) -> Tensor:
    """The largest s' * sum_c e q^2, the last row times the last column."""
    return _largest(left[:, -1:]) * _largest(right[..., -1:])


def _largest(x: Tensor) -> Tensor:
    low, high = x.aminmax()
    return torch.maximum(-low, high)
