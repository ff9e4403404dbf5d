"""The similarity of Eq. 2 as one matrix product, with keys translated by a median key.

    S = -(s / sqrt(CK)) * sum_c e (k - q)^2 = -s' k^2 . e  +  2 s' k . (e q)  -  s' * sum_c e q^2,
    s' = s / sqrt(CK),

is the product of a memory operand [2 CK + 1, N] and a query operand [Q, 2 CK + 1]. The three terms
cancel for the best matches. Translating k and q by a median key leaves S as it is and makes the
terms small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs

_CENTER_SAMPLES = 64  # keys of each segment whose median is the center

# Products below this cannot add up to an overflow (float32 ends at 3.4e38, a score has 2 CK + 1
# terms), so no score can be NaN.
_SAFE_PRODUCT = 1e34


class Operands(NamedTuple):
    """Both sides of the product. ``safe``: no score can be NaN or +inf."""

    memory: Tensor  # [B, 2 CK + 1, N]
    query: Tensor  # [B, Q, 2 CK + 1]
    safe: bool

    def scores(self, start: int | None = None, stop: int | None = None) -> Tensor:
        """Similarity [B, stop - start, N] of a block of queries; what cannot be read is -inf."""
        score = self.query[:, start:stop] @ self.memory
        if self.safe:
            return score
        return torch.where(score.isnan() | (score == math.inf), -math.inf, score)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: float32 for the 16-bit types."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def center_key(mk: list[Tensor]) -> Tensor:
    """A median key [B, CK, 1]: per channel the median of some keys of each segment.

    The similarity does not depend on it, only its rounding. It is a median and no mean, because
    neither a key that is not finite nor a few enormous ones move a median away from the rest.
    """
    samples = []
    for k in mk:
        n = k.shape[2]
        if n > 0:
            row = torch.arange(_CENTER_SAMPLES, device=k.device) * n // _CENTER_SAMPLES
            samples.append(k.index_select(2, row))
    center = torch.cat(samples, 2).to(compute_dtype(mk[0].dtype)).nanmedian(2, keepdim=True).values
    return torch.where(center.isfinite(), center, 0.0)


def operands(memory: MemoryInputs, queries: QueryInputs) -> Operands:
    """Both sides of the product, of all segments, in :func:`compute_dtype`."""
    dtype = compute_dtype(queries.qk.dtype)
    center = center_key(memory.mk)
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
    return Operands(left, right, _safe(left, right))


def _safe(memory: Tensor, query: Tensor) -> bool:
    """Reads the numbers, so only where that costs no wait for a device and no graph break."""
    if torch.compiler.is_compiling() or memory.device.type != "cpu" or memory.numel() == 0 or query.numel() == 0:
        return False
    return bool(_largest(memory) * _largest(query) < _SAFE_PRODUCT)  # NaN compares false


def _largest(x: Tensor) -> Tensor:
    low, high = x.aminmax()
    return torch.maximum(-low, high)
