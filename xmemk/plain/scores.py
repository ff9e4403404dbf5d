"""The similarity of Eq. 2 as one matrix product, with keys translated by a middle key.

    S = -(s / sqrt(CK)) * sum_c e (k - q)^2 = -s' k^2 . e  +  2 s' k . (e q)  -  s' * sum_c e q^2,    s' = s / sqrt(CK)

is the product of a memory operand [2 CK + 1, N] and a query operand [Q, 2 CK + 1]. The three terms cancel for the best
matches; translating k and q by a middle key leaves S as it is and makes the terms small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_CENTER_SAMPLES = 64

# Products below this cannot add up to an overflow, so no score can be NaN.
_SAFE_PRODUCT = 1e34


class Operands(NamedTuple):
    memory: Tensor  # [B, 2 CK + 1, N]
    query: Tensor  # [B, Q, 2 CK + 1]
    safe: bool  # no score can be NaN or +inf

    def scores(self, start: int | None = None, stop: int | None = None) -> Tensor:
        """Similarity [B, stop - start, N] of a block of queries; what cannot be read is -inf."""
        score = self.query[:, start:stop] @ self.memory
        if self.safe:
            return score
        return torch.where(score.isnan() | (score == math.inf), -math.inf, score)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def center(mk: list[Tensor]) -> Tensor:
    """A middle key [B, CK, 1]: per channel the median of some keys of each segment.

    The similarity does not depend on it, only its rounding. A median, so that neither a key that is not finite nor a
    few enormous ones move it away from the rest, as they would move a mean.
    """
    samples = []
    for k in mk:
        n = k.shape[2]
        if n > 0:
            row = torch.arange(_CENTER_SAMPLES, device=k.device) * n // _CENTER_SAMPLES
            samples.append(k.index_select(2, row))
    middle = torch.cat(samples, 2).to(compute_dtype(mk[0].dtype)).nanmedian(2, keepdim=True).values
    return torch.where(middle.isfinite(), middle, 0.0)


def operands(mk: list[Tensor], ms: list[Tensor] | None, qk: Tensor, qe: Tensor | None) -> Operands:
    dtype = compute_dtype(qk.dtype)
    middle = center(mk)
    rows = []
    for i, key in enumerate(mk):
        k = key.to(dtype) - middle
        s = k.new_ones(k.shape[0], 1, k.shape[2]) if ms is None else ms[i].to(dtype)
        s = s / math.sqrt(k.shape[1])
        sk = s * k
        rows.append(torch.cat([-sk * k, 2 * sk, -s], 1))
    memory = rows[0] if len(rows) == 1 else torch.cat(rows, 2)
    q = (qk.to(dtype) - middle).transpose(1, 2)
    e = torch.ones_like(q) if qe is None else qe.to(dtype).transpose(1, 2)
    eq = e * q
    query = torch.cat([e, eq, (eq * q).sum(2, keepdim=True)], 2)
    return Operands(memory, query, _safe(memory, query))


def _safe(memory: Tensor, query: Tensor) -> bool:
    """Looks at the numbers, so only where that costs no wait for a device and no graph break."""
    if torch.compiler.is_compiling() or memory.device.type != "cpu" or memory.numel() == 0 or query.numel() == 0:
        return False
    return bool(_largest(memory) * _largest(query) < _SAFE_PRODUCT)  # NaN compares false


def _largest(x: Tensor) -> Tensor:
    low, high = x.aminmax()
    return torch.maximum(-low, high)
