"""Values kept in 8 bits: codes with a float32 scale for each token, object and group of channels.

Keys, shrinkage and usage stay as they are, so that what is read is chosen as without it; only the values that are read
are rounded. A read of k tokens widens the k rows it selects. Reads over all tokens, and consolidation, widen the values
a few channels at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bank import Bank
from .spec import LARGEST_CODE, Spec
from .table import Run
from .values import Values

_WIDENED_BYTES = 64 << 20  # of values at a time, where all of them are read


class ScaledValues(Values):
    """Banks of codes [B, tokens, O, CV] in ``spec.stored_value_dtype`` and of scales [B, tokens, O, G]."""

    def __init__(self, spec: Spec, functions: Any) -> None:
        super().__init__(spec, functions)
        self.groups = spec.value_scales
        self.group = -(-spec.value_channels // self.groups)
        self.scale = Bank(spec.batch, (spec.objects, self.groups), torch.float32, spec.device)
        self.banks.append(self.scale)

    def write(self, run: Run, value: Tensor) -> None:
        """value [B, O, CV, n] becomes that of the run's tokens, rounded."""
        x = F.pad(value.permute(0, 3, 1, 2).float(), (0, self.groups * self.group - value.shape[2]))
        x = x.unflatten(3, (self.groups, self.group))
        largest = LARGEST_CODE[self.bank.dtype]
        # No smaller than a normal number, so that the division below is one; values that small are 0.
        scale = (x.abs().amax(4) / largest).clamp_min(torch.finfo(torch.float32).tiny)
        code = (x / scale.unsqueeze(4)).flatten(3)[..., : value.shape[2]].clamp(-largest, largest)
        if self.bank.dtype == torch.int8:
            code = code.round()
        self.bank.rows(run).copy_(code)
        self.scale.rows(run).copy_(scale)

    def read(
        self,
        mk: list[Tensor],
        ms: list[Tensor],
        runs: Sequence[Run],
        qk: Tensor,
        qe: Tensor | None,
        *,
        top_k: int | None,
        return_usage: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Values.read`."""
        usage: Tensor | None = None
        if top_k is not None and top_k < sum(run.tokens for run in runs):
            affinity = self.functions.affinity_topk(
                mk, ms, qk, qe, top_k=top_k, return_usage=return_usage, backend=backend
            )
            scales = [self.scale.view(run) for run in runs]
            readout = self.functions.readout_topk(
                self.segments(runs), affinity[0], affinity[1], scale=scales, backend=backend
            )
            return readout.to(self.spec.value_dtype), affinity[2] if len(affinity) == 3 else None
        parts = []
        for values in self._widened(runs):
            if return_usage and usage is None:
                part, usage = self.functions.memory_read(mk, ms, values, qk, qe, return_usage=True, backend=backend)
            else:
                part = self.functions.memory_read(mk, ms, values, qk, qe, backend=backend)
            parts.append(part.to(self.spec.value_dtype))
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0], usage

    def consolidate(
        self,
        mk: list[Tensor],
        ms: list[Tensor],
        me: list[Tensor] | None,
        runs: Sequence[Run],
        usage: Tensor,
        count: int,
        *,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Values.consolidate`."""
        parts = [self.functions.consolidate(mk, ms, me, v, usage, count, backend=backend) for v in self._widened(runs)]
        pk, ps, _ = parts[0]
        return pk, ps, torch.cat([pv for _, _, pv in parts], 2)

    def _widened(self, runs: Sequence[Run]) -> Iterator[list[Tensor]]:
        """float32 values of some channels, [B, O, c, n] of each run; channels after channels."""
        spec = self.spec
        tokens = sum(run.tokens for run in runs)
        groups = max(1, _WIDENED_BYTES // (4 * spec.batch * tokens * spec.objects * self.group))
        for first in range(0, self.groups, groups):
            channels = slice(first * self.group, (first + groups) * self.group)
            segments = []
            for run in runs:
                code = self.bank.rows(run)[..., channels].float()
                scale = self.scale.rows(run)[..., first : first + groups].repeat_interleave(self.group, dim=3)
                segments.append(code.mul_(scale[..., : code.shape[3]]).movedim(1, -1))
            yield segments


def values_for(spec: Spec, functions: Any) -> Values:
    """Banks of the kind that ``spec.stored_value_dtype`` asks for."""
    return (ScaledValues if spec.stored_value_dtype in LARGEST_CODE else Values)(spec, functions)
