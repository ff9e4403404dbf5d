"""Values of 8 bits: codes with a float32 scale for each token, object and group of channels.

Only values are rounded. Keys, shrinkage and usage are exact, so a read selects the same tokens as
one of unrounded values. A top-k read widens the k rows it selects. Reads over all tokens, and
consolidation, widen the values a few channels at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .bank import Bank
from .spec import LARGEST_CODE, Spec
from .table import Run
from .values import Values

_WIDENED_BYTES = 64 << 20  # widened at a time, where all values are read


class ScaledValues(Values):
    """Banks of codes [B, tokens, O, CV] and, for G groups of channels, scales [B, tokens, O, G]."""

    def __init__(self, spec: Spec, functions: Any) -> None:
        super().__init__(spec, functions)
        self.groups = spec.value_scales
        self.group = -(-spec.value_channels // self.groups)
        self.banks.append(Bank(spec.batch, (spec.objects, self.groups), torch.float32, spec.device))

    @property
    def scale(self) -> Bank:
        """The bank of scales."""
        return self.banks[1]

    def write(self, run: Run, value: Tensor) -> None:
        """Stores value [B, O, CV, n], rounded, for the tokens of the run."""
        x = F.pad(value.permute(0, 3, 1, 2).float(), (0, self.groups * self.group - value.shape[2]))
        x = x.unflatten(3, (self.groups, self.group))
        largest = LARGEST_CODE[self.bank.dtype]
        # At least the smallest normal number, so that nothing is divided by 0; smaller values
        # become 0.
        scale = (x.abs().amax(4) / largest).clamp_min(torch.finfo(torch.float32).tiny)
        code = (x / scale.unsqueeze(4)).flatten(3)[..., : value.shape[2]].clamp(-largest, largest)
        if self.bank.dtype == torch.int8:
            code = code.round()
        self.bank.write(run, code)
        self.scale.write(run, scale)

    def read(
        self,
        keys: MemoryInputs,
        runs: Sequence[Run],
        queries: QueryInputs,
        *,
        top_k: int | None,
        return_usage: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Values.read`."""
        if top_k is not None and top_k < sum(run.tokens for run in runs):
            weight, index, *usages = self.functions.affinity_topk(
                keys.mk, keys.ms, *queries, top_k=top_k, return_usage=return_usage, backend=backend
            )
            scales = [self.scale.view(run) for run in runs]
            readout = self.functions.readout_topk(self.segments(runs), weight, index, scale=scales, backend=backend)
            return readout.to(self.spec.value_dtype), usages[0] if usages else None
        usage: Tensor | None = None
        parts = []
        for mv in self._widened(runs):
            memory = keys._replace(mv=mv)
            if return_usage and usage is None:
                part, usage = self.functions.memory_read(*memory, *queries, return_usage=True, backend=backend)
            else:
                part = self.functions.memory_read(*memory, *queries, backend=backend)
            parts.append(part.to(self.spec.value_dtype))
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0], usage

    def consolidate(
        self,
        keys: MemoryInputs,
        me: list[Tensor] | None,
        runs: Sequence[Run],
        usage: Tensor,
        count: int,
        *,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Values.consolidate`."""
        mk, ms, _ = keys
        parts = [
            self.functions.consolidate(mk, ms, me, mv, usage, count, backend=backend) for mv in self._widened(runs)
        ]
        pk, ps, _ = parts[0]
        return pk, ps, torch.cat([pv for _, _, pv in parts], 2)

    def _widened(self, runs: Sequence[Run]) -> Iterator[list[Tensor]]:
        """float32 values [B, O, c, n] of each run, c channels at a time."""
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
    """Values as ``spec.stored_value_dtype`` asks for them."""
    return (ScaledValues if spec.stored_value_dtype in LARGEST_CODE else Values)(spec, functions)
